"""Formats of annotations that crowsetta reads, for example Praat's TextGrid."""

from collections.abc import Iterator
from typing import Any

from embedding import extras, storage
from embedding.config import did_you_mean
from embedding.errors import RequestError
from embedding.labelling.annotations import Annotation


def read_with_crowsetta(uri: str, label_format: str) -> Iterator[Annotation]:
    """Yield the annotations of a file.

    Args:
        uri: A path on this machine.
        label_format: Name of the format, as ``crowsetta.formats.as_list()`` gives it.

    Raises:
        RequestError: crowsetta is not installed, knows no such format, or cannot read the file.
    """
    crowsetta = extras.load("crowsetta", "crowsetta")
    known = crowsetta.formats.as_list()
    if label_format not in known:
        raise RequestError(
            f"--label-format: {label_format!r} is not one of {', '.join(known)}{did_you_mean(label_format, known)}"
        )
    if storage.is_s3(uri):
        raise RequestError(f"--labels: crowsetta reads files of this machine: copy {uri} first")
    try:
        read: Any = crowsetta.Transcriber(label_format).from_file(uri).to_annot()
    except Exception as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"--labels: {uri} cannot be read as {label_format}: {reason}") from error
    for annotation in read if isinstance(read, list) else [read]:
        # Without the path of the audio, the name of the annotation says which recording is meant.
        audio = annotation.notated_path or uri.rpartition("/")[2].partition(".")[0]
        boxes = getattr(annotation, "bboxes", None)
        if boxes is not None:
            yield from (Annotation(str(audio), box.onset, box.offset, str(box.label)) for box in boxes)
            continue
        sequences = annotation.seq if isinstance(annotation.seq, list) else [annotation.seq]  # of a TextGrid's tiers
        for segment in (segment for sequence in sequences for segment in sequence.segments):
            if segment.onset_s is None or segment.offset_s is None:
                raise RequestError(f"--labels: {uri} gives times in samples, without seconds")
            yield Annotation(str(audio), float(segment.onset_s), float(segment.offset_s), str(segment.label))
