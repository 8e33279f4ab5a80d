"""A bucket to export from."""

import itertools

import pytest

from store.testing import servers

_numbers = itertools.count()


@pytest.fixture(scope="session")
def export_bucket():
    """A server in this process with a bucket."""
    fsspec = pytest.importorskip("fsspec")
    with pytest.MonkeyPatch.context() as patch:
        try:
            with servers.s3() as environment:
                for name, value in environment.items():
                    patch.setenv(name, value)
                files = fsspec.filesystem("s3", skip_instance_cache=True)
                files.mkdir(f"{servers.BUCKET}-export")  # buckets outlive a server of this process
                yield f"s3://{servers.BUCKET}-export"
        except servers.MissingError as error:
            pytest.skip(str(error))


@pytest.fixture
def s3_url(export_bucket):
    """Where an empty store may be made in the bucket."""
    return f"{export_bucket}/store-{next(_numbers)}"
