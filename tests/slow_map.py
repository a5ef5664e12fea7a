"""`darknet detector map` and the evaluation of the VOC devkit in plain loops, to compare with.
Source: Darknet's src/detector.c, validate_detector_map; VOCevaldet.m and VOCap.m, in own words."""

import math


def iou(a, b) -> float:
    """Of two boxes cx, cy, w, h."""
    high = [min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2) for i in (0, 1)]
    low = [max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2) for i in (0, 1)]
    sides = [max(end - start, 0.0) for start, end in zip(low, high, strict=True)]
    return sides[0] * sides[1] / (a[2] * a[3] + b[2] * b[3] - sides[0] * sides[1])


def slow_map(images, classes, iou_thresh, points):
    """images: (rows label, score, box; ground truth; difficult) -> ap, tp, fp, iou_sum, count."""
    kept, found = [], set()
    tp, fp, sums, truths = ([0] * classes for _ in range(4))
    for number, (rows, image_truths, difficult) in enumerate(images):
        seen = set()
        for label, score, *box in rows:
            best, match = 0.0, None
            for index, (truth_label, *truth) in enumerate(image_truths):
                overlap = iou(box, truth)
                if label == truth_label and overlap > iou_thresh and overlap > best:
                    best, match = overlap, (number, index)
            hard = any(label == row[0] and iou(box, row[1:]) > iou_thresh for row in difficult)
            if match or not hard:
                kept.append((score, int(label), match))
            if score > 0.25:
                first = match is not None and match not in seen
                tp[int(label)] += first
                fp[int(label)] += not first
                sums[int(label)] += best * first
            seen.add(match)
        for row in image_truths:
            truths[int(row[0])] += 1
    hits = [[] for _ in range(classes)]
    for _, label, match in sorted(kept, key=lambda row: -row[0]):
        hits[label].append(match is not None and match not in found)
        found.add(match)
    ap = [slow_ap(*each, points) for each in zip(hits, truths, strict=True)]
    return ap, tp, fp, sums, len(kept)


def slow_ap(hits, truths, points):
    tp = [sum(hits[: index + 1]) for index in range(len(hits))]
    curve = [(found / max(truths, 1), found / index) for index, found in enumerate(tp, 1)]
    if points:
        wanted = [k * (1 / (points - 1)) for k in range(points)]
        return sum(max([p for r, p in curve if r >= w], default=0.0) for w in wanted) / points
    area, last = 0.0, 0.0
    for index, (recall, _) in enumerate(curve):
        area += (recall - last) * max(p for _, p in curve[index:])
        last = recall
    return area


def slow_voc(images, classes):
    """images: (rows of class, score, xmin, ymin, xmax, ymax; truths of class, difficult, xmin,
    ymin, xmax, ymax) -> AP of VOC2007, of VOC2010 by class; nan where no ground truth counts."""

    def centred(box):
        """With the devkit's extra pixel"""
        left, top, right, bottom = box
        sides = right - left + 1, bottom - top + 1
        return left + sides[0] / 2, top + sides[1] / 2, *sides

    ap07, ap10 = [], []
    for label in range(classes):
        truths = [[row[1:] for row in rows if row[0] == label] for _, rows in images]
        count = sum(not row[0] for rows in truths for row in rows)
        rows = [(s, i, box) for i, (found, _) in enumerate(images)
                for c, s, *box in found if c == label]  # fmt: skip
        detected, hits = set(), []
        for _, i, box in sorted(rows, key=lambda row: -row[0]):  # stable, as MATLAB's
            overlaps = [iou(centred(box), centred(truth)) for _, *truth in truths[i]]
            match = overlaps.index(max(overlaps)) if overlaps else None
            if match is None or overlaps[match] < 0.5:
                hits.append(False)
            elif not truths[i][match][0]:  # else neither right nor wrong
                hits.append((i, match) not in detected)
                detected.add((i, match))
        for ap, points in ((ap07, 11), (ap10, 0)):
            ap.append(slow_ap(hits, count, points) if count else math.nan)
    return ap07, ap10
