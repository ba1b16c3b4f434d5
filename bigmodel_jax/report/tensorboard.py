"""Write scalars for TensorBoard into an event file, in the caller's own thread.

tensorboardX's `SummaryWriter` passes events through a bounded queue to a thread. If the disk is
full, the thread dies, and a later call blocks forever. So this module takes only the file format
from that package.
"""

import logging
import socket
import struct
import time
from pathlib import Path

log = logging.getLogger(__name__)


class Board:
    """Writes scalars to a new event file in `folder`, one write per step.

    If the file cannot be written, a warning is logged once and the run goes on. TensorBoard ignores
    the records of earlier files from step `purge_step` on.
    """

    def __init__(self, folder: Path, purge_step: int):
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # takes 0.3 s; only process 0 needs it

        self._path = folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._file = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        except OSError as error:
            self._give_up(error)
        # TensorBoard expects the version as a file's first record.
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))
        restart = SessionLog(status=SessionLog.START)
        self._append(Event(wall_time=time.time(), step=purge_step, session_log=restart))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Append the scalars of one step."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._append(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _append(self, event) -> None:
        if self._file is None:
            return
        content = framed(event.SerializeToString())
        try:
            if self._file.write(content) < len(content):  # otherwise only the next write would raise
                raise OSError(0, "only a part of a record could be written")
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        log.warning("%s: %s; TensorBoard gets nothing more of this run", self._path, error.strerror)
        self.close()
        self._file = None


def framed(content: bytes) -> bytes:
    """One record of a TFRecord file: length, checksum of the length, content, checksum of the
    content.
    """
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(content))
    return b"".join(
        (length, struct.pack("<I", masked_crc32c(length)), content, struct.pack("<I", masked_crc32c(content)))
    )
