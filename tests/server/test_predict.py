"""`/setup` and `/predict`, as Label Studio sends and reads them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from model_server import ANSWER, CONFIG, ModelServer
from scripted_detector import WAIT_S, ScriptedDetector, detections
from spica.boxes import Detections
from spica.errors import WeightsError


def drawn(kind: str = "rectangle", **value: float) -> dict[str, Any]:
    """A context with one drawn region."""
    label = {"rectanglelabels": ["spike"]} if kind == "rectangle" else {"keypointlabels": ["spike"]}
    region = {
        "id": "drawn1",
        "from_name": "label" if kind == "rectangle" else "point",
        "to_name": "image",
        "type": "rectanglelabels" if kind == "rectangle" else "keypointlabels",
        "value": {**value, **label},
        "original_width": 200,
        "original_height": 100,
    }
    return {"result": [region]}


def test_boxes_come_in_percent_of_the_image_with_their_scores(server: ModelServer) -> None:
    """A shown box is where the detector saw it, and the prediction's score is the mean of the shown ones."""
    answer = server.predict(server.photograph("a.png"))
    assert answer.status_code == 200
    (prediction,) = answer.json()["results"]
    boxes = [item["value"] for item in prediction["result"]]
    assert [(box["x"], box["y"], box["width"], box["height"]) for box in boxes] == [(5, 10, 20, 20), (50, 40, 20, 50)]
    assert [item["score"] for item in prediction["result"]] == [0.9, 0.7]
    assert prediction["score"] == pytest.approx(0.8)
    first = prediction["result"][0]
    assert (first["original_width"], first["original_height"], first["image_rotation"]) == (200, 100, 0)


def test_the_version_of_predictions_is_the_one_that_setup_answers(server: ModelServer) -> None:
    """Otherwise Label Studio would store one more prediction at every visit."""
    version = server.setup()["model_version"]
    (prediction,) = server.predict(server.photograph("a.png")).json()["results"]
    assert prediction["model_version"] == version
    assert version.startswith("test-0001.")
    assert server.client.get("/versions").json() == {"versions": [version]}


def test_an_image_without_objects_is_a_prediction_without_regions(make_server: Callable[..., ModelServer]) -> None:
    """Nothing to see is an answer, with a score that says how sure the model is of it."""
    server = make_server(ScriptedDetector(detections((1, 1, 9, 9, 0.25))))
    (prediction,) = server.predict(server.photograph("a.png")).json()["results"]
    assert prediction["result"] == []
    assert prediction["score"] == pytest.approx(0.75)
    server = make_server(ScriptedDetector(Detections.empty()))
    (prediction,) = server.predict(server.photograph("a.png")).json()["results"]
    assert prediction["score"] == 1.0


def test_answers_keep_number_and_order_and_a_failed_task_has_no_result(server: ModelServer) -> None:
    """The one broken task of three is answered with its reason, and Label Studio stores nothing for it."""
    (server.root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    uris = [server.photograph("a.png"), "/data/local-files/?d=broken.png", server.photograph("c.png", (9, 9, 9))]
    answer = server.predict(*uris)
    assert answer.status_code == 200
    first, broken, third = answer.json()["results"]
    assert len(first["result"]) == len(third["result"]) == 2
    assert "result" not in broken
    assert broken["error"]["code"] == "image"
    assert [(str(failure.project), failure.task) for failure in server.service.failures] == [("1", 2)]
    assert "broken.png" in server.client.get("/").text


@pytest.mark.parametrize(
    ("uri", "status", "code"),
    [
        ("/data/local-files/?d=missing.png", 422, "media"),
        ("/data/local-files/?d=../secret.png", 403, "media_forbidden"),
        ("ftp://example.org/a.png", 422, "media"),
    ],
    ids=["missing", "outside the root", "unknown scheme"],
)
def test_a_single_task_that_fails_is_answered_with_its_status(
    server: ModelServer, uri: str, status: int, code: str
) -> None:
    """Label Studio stores nothing for an error, and the reason is there for whoever looks."""
    answer = server.predict(uri)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"]["hint"]


def test_a_task_on_which_the_network_fails_is_an_error(server: ModelServer) -> None:
    """The detector's own exception reaches the client as a sentence, not as a traceback."""
    answer = server.predict(server.photograph("black.png", (0, 0, 0)))
    assert answer.status_code == 503
    assert "Traceback" not in answer.text
    assert "ZeroDivisionError" in answer.json()["error"]["got"]


def test_several_images_in_one_task_each_get_their_own_boxes(server: ModelServer) -> None:
    """Two Image tags with a control each are answered separately, in one prediction."""
    config = (
        '<View><Image name="left" value="$a"/><RectangleLabels name="l" toName="left"><Label value="spike"/>'
        '</RectangleLabels><Image name="right" value="$b"/><RectangleLabels name="r" toName="right">'
        '<Label value="spike"/></RectangleLabels></View>'
    )
    data = {"a": server.photograph("a.png"), "b": server.photograph("b.png", (1, 2, 3))}
    answer = server.client.post("/predict", json={"tasks": [{"id": 1, "data": data}], "label_config": config})
    (prediction,) = answer.json()["results"]
    assert [item["to_name"] for item in prediction["result"]] == ["left", "left", "right", "right"]
    assert len({item["id"] for item in prediction["result"]}) == 4
    assert server.detector.calls == 2


@pytest.mark.parametrize(
    ("extra_params", "attribute", "shown"),
    [
        (None, "", 2),
        ('{"score_threshold": 0.2}', "", 3),
        ({"score_threshold": 0.8}, "", 1),
        ('{"score_threshold": 0.2}', 'model_score_threshold="0.8"', 1),
        ("{not json", "", 2),
    ],
    ids=["the server's", "extra params as the form sends them", "as the API sends them", "the tag's wins", "junk"],
)
def test_the_narrowest_threshold_wins_and_changes_the_version(
    server: ModelServer, extra_params: Any, attribute: str, shown: int
) -> None:
    """Server, extra params, control tag: the later wins; the network runs once for all of them."""
    plain = server.setup()["model_version"]
    config = CONFIG.replace('smart="true"', f'smart="true" {attribute}')
    setup = server.setup(config, extra_params=extra_params)
    uri = server.photograph("a.png")
    (prediction,) = server.predict(uri, config=config).json()["results"]
    assert len(prediction["result"]) == shown
    assert prediction["model_version"] == setup["model_version"]
    assert (setup["model_version"] != plain) == (shown != 2)
    server.predict(uri, config=config)
    assert server.detector.calls == 1


def test_a_drawn_rectangle_gives_what_is_inside_down_to_the_floor_without_a_second_run(server: ModelServer) -> None:
    """The weak detection below the threshold appears when a person asks for that spot."""
    uri = server.photograph("a.png")
    server.predict(uri)
    (prediction,) = server.predict(uri, context=drawn(x=28, y=55, width=15, height=30)).json()["results"]
    assert [item["score"] for item in prediction["result"]] == [0.3]
    assert server.detector.calls == 1


def test_a_point_gives_the_best_box_around_it(server: ModelServer) -> None:
    """A key point inside a box gives that box, one beside it nothing."""
    uri = server.photograph("a.png")
    (inside,) = server.predict(uri, context=drawn("point", x=60, y=60, width=1)).json()["results"]
    (beside,) = server.predict(uri, context=drawn("point", x=99, y=1, width=1)).json()["results"]
    assert [item["score"] for item in inside["result"]] == [0.7]
    assert beside["result"] == []


@pytest.mark.parametrize("context", [{}, {"result": []}], ids=["empty", "no regions"])
def test_no_drawing_gives_the_usual_answer(server: ModelServer, context: dict[str, Any]) -> None:
    """An interactive request without a drawing is answered like an opened task."""
    (prediction,) = server.predict(server.photograph("a.png"), context=context).json()["results"]
    assert len(prediction["result"]) == 2


def test_predict_waits_for_the_model_and_setup_does_not(make_server: Callable[..., ModelServer]) -> None:
    """While a large model loads, connecting works at once and opening an image waits instead of failing."""
    loaded = threading.Event()
    detector = ScriptedDetector(ANSWER)

    def load() -> ScriptedDetector:
        assert loaded.wait(WAIT_S)
        return detector

    server = make_server(detector, load=load)
    uri = server.photograph("a.png")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.predict, uri)
        assert server.client.get("/health").json()["model"]["state"] == "loading"
        assert server.setup()["model_version"].startswith("test-0001.")
        assert not waiting.done()
        loaded.set()
        assert len(waiting.result(WAIT_S).json()["results"][0]["result"]) == 2


def test_health_and_setup_answer_while_the_network_computes(server: ModelServer) -> None:
    """The event loop is free during inference."""
    server.detector.go.clear()
    uri = server.photograph("a.png")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.predict, uri)
        assert server.detector.begun.wait(WAIT_S)
        assert server.client.get("/health").status_code == 200
        assert server.setup()["model_version"]
        assert not waiting.done()
        server.detector.go.set()
        assert waiting.result(WAIT_S).status_code == 200


def test_a_full_queue_is_a_503_that_says_when_to_come_back(make_server: Callable[..., ModelServer]) -> None:
    """A client that comes too much is told so, with Retry-After."""
    server = make_server(queue_size=2)
    server.detector.go.clear()
    uri = server.photograph("a.png")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.predict, uri, uri)
        assert server.detector.begun.wait(WAIT_S)
        refused = server.predict(uri)
        server.detector.go.set()
        assert waiting.result(WAIT_S).status_code == 200
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["Retry-After"]) >= 1


def test_a_model_that_could_not_be_loaded_tells_why(make_server: Callable[..., ModelServer]) -> None:
    """Predictions are errors with the reason, health and the page show it, and nothing is stored as no objects."""

    def load() -> ScriptedDetector:
        raise WeightsError("the weights are truncated", hint="copy the file again")

    server = make_server(load=load)
    answer = server.predict(server.photograph("a.png"))
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "the weights are truncated"
    assert server.client.get("/health").json()["model"]["error"]["hint"] == "copy the file again"
    assert "copy the file again" in server.client.get("/").text


def test_classes_and_labels_that_do_not_meet_are_said_with_both_lists(
    server: ModelServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Connecting works, says what can't be met once, and predictions fail with the reason instead of being empty."""
    config = CONFIG.replace("spike", "panicle")
    problems = " ".join(server.setup(config)["problems"])
    assert "spike" in problems
    assert "panicle" in problems
    before = caplog.text.count("panicle")
    server.setup(config)
    assert caplog.text.count("panicle") == before > 0
    answer = server.predict(server.photograph("a.png"), config=config)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "label_config"


def test_a_configuration_without_rectangles_connects_and_says_what_is_missing(server: ModelServer) -> None:
    """People connect first and configure later; Label Studio would hide the reason of a refusal."""
    setup = server.setup('<View><Text name="t" value="$t"/></View>')
    assert setup["model_version"] == "test-0001"
    assert "RectangleLabels" in " ".join(setup["problems"])
    answer = server.predict(server.photograph("a.png"), config='<View><Text name="t" value="$t"/></View>')
    assert answer.status_code == 422


def test_a_task_without_the_key_says_which_keys_it_has(server: ModelServer) -> None:
    """The undefined key of the configuration is named, and the task's own."""
    body = {"tasks": [{"id": 5, "data": {"picture": "x.png"}}], "label_config": CONFIG}
    answer = server.client.post("/predict", json=body)
    assert answer.status_code == 422
    assert "picture" in answer.json()["error"]["got"]
