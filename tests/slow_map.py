"""`darknet detector map` in plain loops over everything, to compare the real one with.
Source: Darknet's src/detector.c, validate_detector_map, in own words."""


def iou(a, b) -> float:
    sides = [
        min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2) - max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2) for i in (0, 1)
    ]
    if min(sides) <= 0:
        return 0.0
    return sides[0] * sides[1] / (a[2] * a[3] + b[2] * b[3] - sides[0] * sides[1])


def slow_map(images, classes, iou_thresh, points):
    """images: (rows label, score, box; truths; difficult) -> ap, tp, fp, iou_sum, count, by loops over everything."""
    kept, found, tp, fp, sums, truths = (
        [],
        set(),
        [0] * classes,
        [0] * classes,
        [0.0] * classes,
        [0] * classes,
    )
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
    curves = [[] for _ in range(classes)]
    counts = [[0, 0] for _ in range(classes)]
    for _, label, match in sorted(kept, key=lambda row: -row[0]):
        hit = match is not None and match not in found
        found.add(match)
        counts[label][not hit] += 1
        hits, misses = counts[label]
        curves[label].append((hits / max(truths[label], 1), hits / (hits + misses)))
    return [slow_ap(curve, points) for curve in curves], tp, fp, sums, len(kept)


def slow_ap(curve, points):
    if points:
        wanted = [k * (1 / (points - 1)) for k in range(points)]
        return sum(max([p for r, p in curve if r >= w], default=0.0) for w in wanted) / points
    area, last = 0.0, 0.0
    for index, (recall, _) in enumerate(curve):
        area += (recall - last) * max(p for _, p in curve[index:])
        last = recall
    return area
