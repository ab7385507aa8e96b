"""Data sets of other formats into Ultralytics' layout, one file a format, and back to COCO.

A format reads (`record.Found`: images, boxes, regions, splits), `write` writes; what a format means by an image
without annotations, a crowd or an ignored region stands at the head of its file.
"""

from __future__ import annotations

from rebalance.data.formats import (
    coco,
    cvat,
    dusia,
    fddb,
    indoor,
    kitti,
    label_studio,
    lvis,
    open_images,
    to_coco,
    visdrone,
    voc,
    write,
)  # fmt: skip
from rebalance.data.formats.record import ConvertFlags, Format
from rebalance.settings import require

FORMATS: dict[str, Format] = {
    "voc": Format("Pascal VOC, XML", "source=VOCdevkit out=data/voc", voc.VocFlags, voc.read),
    "coco": Format("COCO, JSON", "source=coco/annotations images=coco/images out=data/coco", coco.CocoFlags, coco.read),
    "lvis": Format("LVIS, JSON", "source=lvis images=coco out=data/lvis", ConvertFlags, lvis.read),
    "open-images": Format(
        "Open Images, CSV", "source=oid images=oid/images out=data/oid", ConvertFlags, open_images.read
    ),
    "kitti": Format("KITTI objects, text", "source=kitti/training out=data/kitti", ConvertFlags, kitti.read),
    "visdrone": Format("VisDrone-DET, text", "source=VisDrone out=data/visdrone", ConvertFlags, visdrone.read),
    "dusia": Format(
        "DUSIA, CVAT XML and lists", "source=dusia images=dusia/videos out=data/dusia", ConvertFlags, dusia.read
    ),
    "cvat": Format("CVAT 1.1, XML", "source=annotations.xml images=video.mp4 out=data/my", cvat.CvatFlags, cvat.read),
    "label-studio": Format(
        "Label Studio, JSON", "source=export.json images=photos out=data/my", ConvertFlags, label_studio.read
    ),
    "fddb": Format("FDDB, ellipses", "source=FDDB-folds images=originalPics out=data/fddb", ConvertFlags, fddb.read),
    "indoor": Format("TUT Indoor, dlib XML", "source=indoor out=data/indoor", ConvertFlags, indoor.read),
}
TO_COCO = "to-coco"  # the one that goes the other way


def convert(name: str, given: ConvertFlags | to_coco.ToCocoFlags) -> str:
    """Convert a data set; returns the summary. `source` (`data`) and `out` are required.

    Raises:
        ConfigError: a flag is missing or has no effect.
        DataError: the source cannot be read or `out` not be written. Nothing is left.
    """
    if isinstance(given, to_coco.ToCocoFlags):
        require(given, "data", "out")
        return to_coco.summary(to_coco.write(given))
    require(given, "source", "out")
    return write.summary(write.write(name, FORMATS[name], given))
