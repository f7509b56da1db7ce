"""Certificates of the tests, made by the openssl command."""

import subprocess
from typing import NamedTuple


class Identity(NamedTuple):
    cert: object
    key: object
    ca: object  # of the other side

    def flags(self):
        """As kvctl's flags."""
        return ("--tls-cert", self.cert, "--tls-key", self.key, "--tls-ca", self.ca)


def openssl(*arguments):
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


class Authority:
    """Signs certificates; all files lie in `folder`."""

    KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")

    def __init__(self, folder, name="ca"):
        self.folder, self.name = folder, name
        self.cert, self.key = folder / f"{name}.pem", folder / f"{name}.key"
        openssl("req", "-x509", *self.KEY, "-keyout", self.key, "-out", self.cert, "-days", 2, "-subj", f"/CN={name}")

    def issue(self, name, san=None, days=2, extensions=()):
        """`san`: "URI:spiffe://x/a,DNS:b.example"; None: a certificate without names. `days=-1`: it has expired."""
        stem = self.folder / f"{self.name}-{name}"
        cert, key, request = (stem.with_suffix(end) for end in (".pem", ".key", ".csr"))
        names = [f"subjectAltName={san}"] if san else []
        added = [word for line in (*names, *extensions) for word in ("-addext", line)]
        openssl("req", *self.KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}", *added)
        openssl("x509", "-req", "-in", request, "-CA", self.cert, "-CAkey", self.key, "-CAcreateserial", "-copy_extensions", "copy",
                "-days", days, "-out", cert)
        key.chmod(0o600)
        return Identity(cert, key, self.cert)
