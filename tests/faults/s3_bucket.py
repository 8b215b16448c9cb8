"""A bucket of Amazon's kind on this machine: `python s3_bucket.py PORT CA_FILE`, from memory, until killed.

TensorStore knows Amazon's own addresses only, over TLS; so PORT is a proxy that leads every address to the emulator
(moto), whose certificate is signed by the authority that is written to CA_FILE once all is ready.
"""

import contextlib
import socket
import ssl
import sys
import threading
from pathlib import Path

import trustme
from moto.s3.models import s3_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

HOSTS = ("*.amazonaws.com", "*.s3.amazonaws.com", "*.s3.us-east-1.amazonaws.com")


def serve(authority: trustme.CA) -> int:
    """Starts the emulator with one bucket; its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*HOSTS).configure_cert(context)
    s3_backends["123456789012"]["aws"].create_bucket("bucket", "us-east-1")  # moto's account
    application = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, application, threaded=True)
    # Shaken hands with in each connection's thread: a client killed before that must not keep all others waiting.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def lead(client: socket.socket, port: int) -> None:
    """Answers one CONNECT with the emulator, whatever it asks for."""
    head = b""
    while b"\r\n\r\n" not in head:
        received = client.recv(4096)
        if not received:  # who only asked whether we are there
            return client.close()
        head += received
    there = socket.create_connection(("127.0.0.1", port))
    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    threading.Thread(target=pass_on, args=(client, there), daemon=True).start()
    pass_on(there, client)


def pass_on(source: socket.socket, target: socket.socket) -> None:
    """Bytes from one to the other until either is closed."""
    try:
        while received := source.recv(65536):
            target.sendall(received)
    except OSError:
        pass
    finally:
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for the other way, as closing does not
            end.close()


if __name__ == "__main__":
    authority = trustme.CA()
    emulator = serve(authority)
    proxy = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    authority.cert_pem.write_to_path(sys.argv[2] + ".part")
    Path(sys.argv[2] + ".part").rename(sys.argv[2])
    while True:
        threading.Thread(target=lead, args=(proxy.accept()[0], emulator), daemon=True).start()
