"""A bucket on this machine: `python bucket.py PORT` serves gs:// addresses over HTTP, from memory, until killed.

The emulator leaves out the one header by which TensorStore knows an object's generation; Google's servers send it.
"""

import sys

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

whole = objects.download


def download(request, response, storage, *arguments, **options):
    """An object with its generation."""
    try:
        about = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
        response["x-goog-generation"] = str(about["generation"])
    except NotFound:
        pass
    return whole(request, response, storage, *arguments, **options)


if __name__ == "__main__":
    objects.download = download
    server.create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").run()
