"""Labels of the comparison's plot."""

from fptq_onnx.benchmarking.label_placement import Label, place_labels


def test_a_lonely_point_has_its_label_at_the_right():
    assert place_labels([(50.0, 40.0)], ["alone"]) == [Label(58.0, 44.0, "start")]


def test_labels_lie_neither_on_each_other_nor_on_points():
    points = [(100.0, 50.0), (103.0, 52.0), (101.0, 55.0), (130.0, 50.0)]
    texts = ["stock-128", "stock-32", "paper", "gptq"]
    boxes = []
    for label, text in zip(place_labels(points, texts), texts, strict=True):
        left = label.x if label.anchor == "start" else label.x - 7 * len(text)
        box = (left, label.y - 10, left + 7 * len(text), label.y + 2)
        for x, y in points:
            assert not (box[0] < x < box[2] and box[1] < y < box[3]), text
        for other in boxes:
            apart = box[2] <= other[0] or other[2] <= box[0]
            assert apart or box[3] <= other[1] or other[3] <= box[1], text
        boxes.append(box)
