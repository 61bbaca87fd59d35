"""What an OpenVINO IR (``.xml`` beside ``.bin``) says of itself, read without OpenVINO."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse

from spica.detectors.refusals import damaged

_MAX_XML_BYTES = 64 * 2**20


def read_rt_info(xml: Path) -> dict[str, str]:
    """The values under ``spica`` in the model's ``rt_info``; empty if Spica did not write it.

    Raises:
        WeightsError: no IR, or its ``.bin`` is missing.
    """
    if xml.stat().st_size > _MAX_XML_BYTES:
        raise damaged(xml, f"a description of {xml.stat().st_size} bytes")
    try:
        root = parse(xml).getroot()
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise damaged(xml, f"no whole XML: {error}") from error
    if root.tag != "net":
        raise damaged(xml, f"XML, but no OpenVINO IR: its root is <{root.tag}>")
    weights = xml.with_suffix(".bin")
    if not weights.is_file() or weights.stat().st_size == 0:
        raise damaged(xml, f"{weights.name}, which belongs beside it, is missing or empty")
    return {entry.tag: entry.get("value", "") for entry in root.iterfind("./rt_info/spica/*")}
