"""The search for traces of a machine sees them wherever they are."""

import gzip
import io
import zipfile

from tests import traces


def test_a_trace_is_seen_in_an_archive_in_an_archive() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.gz", gzip.compress(b"made in /home/mallory/models"))
    content = file.getvalue()
    assert list(traces.leaks_in(content, {"/home/mallory"}, "engine"))
    assert not list(traces.leaks_in(content, {"/home/alice"}, "engine"))
