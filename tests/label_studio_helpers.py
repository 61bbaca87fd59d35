"""What tests against a real Label Studio share; the fixtures are in conftest.py."""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image

from spica.labelstudio.launch import LabelStudioProcess

LABEL_CONFIG = """<View>
  <Image name="image" value="$image"/>
  <RectangleLabels name="label" toName="image">
    <Label value="spike"/>
    <Label value="other"/>
  </RectangleLabels>
</View>"""
LabelStudioFactory = Callable[..., LabelStudioProcess]


def png(size: tuple[int, int] = (64, 48), shade: int = 128) -> bytes:
    """A PNG of ``size`` (width, height) in pixels and one shade of green."""
    content = io.BytesIO()
    Image.new("RGB", size, (0, shade, 0)).save(content, "PNG")
    return content.getvalue()
