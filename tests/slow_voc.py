"""The evaluation of the VOC devkit in plain loops, to compare the real one with.
Source: VOCevaldet.m (VOC2007 and VOC2012) and VOCap.m, line by line in own words."""

import math


def slow_voc(images, classes):
    """images: (rows of class, score, xmin, ymin, xmax, ymax; truths of class, difficult, xmin, ymin, xmax, ymax)
    -> AP of VOC2007, of VOC2010, by class; nan where there is no truth that counts."""
    pairs = [slow_class(images, label) for label in range(classes)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def slow_class(images, label):
    truths = [[row[1:] for row in rows if row[0] == label] for _, rows in images]
    npos = sum(not row[0] for rows in truths for row in rows)
    if not npos:
        return math.nan, math.nan
    found = [(score, i, box) for i, (rows, _) in enumerate(images) for name, score, *box in rows if name == label]
    found.sort(key=lambda row: -row[0])  # stable, as MATLAB's
    detected, tp, fp = set(), [], []
    for _, i, box in found:
        best, match = -math.inf, None
        for j, (_, *truth) in enumerate(truths[i]):
            width = min(box[2], truth[2]) - max(box[0], truth[0]) + 1
            height = min(box[3], truth[3]) - max(box[1], truth[1]) + 1
            if width > 0 and height > 0:
                area = (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
                area += (truth[2] - truth[0] + 1) * (truth[3] - truth[1] + 1) - width * height
                if width * height / area > best:
                    best, match = width * height / area, j
        right = wrong = 0
        if best >= 0.5:
            if not truths[i][match][0]:
                right, wrong = (0, 1) if (i, match) in detected else (1, 0)  # a duplicate is wrong
                detected.add((i, match))
        else:
            wrong = 1
        tp.append((tp[-1] if tp else 0) + right)
        fp.append((fp[-1] if fp else 0) + wrong)
    recall = [t / npos for t in tp]
    precision = [t / (t + f) if t + f else math.nan for t, f in zip(tp, fp, strict=True)]
    return eleven_points(recall, precision), area_of(recall, precision)


def eleven_points(recall, precision):
    total = 0.0
    for k in range(11):
        at = [p for r, p in zip(recall, precision, strict=True) if r >= k * 0.1 and not math.isnan(p)]
        total += max(at, default=0.0) / 11
    return total


def area_of(recall, precision):
    recall, precision = [0.0, *recall, 1.0], [0.0, *(0.0 if math.isnan(p) else p for p in precision), 0.0]
    for i in reversed(range(len(precision) - 1)):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))
