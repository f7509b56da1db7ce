"""TCP with TLS: which certificates get in, as whom, and what a reload changes. Certificates are made by openssl."""

import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from certificates import Authority, Identity, openssl
from conftest import SPEC_FLAGS, Daemon

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")

FAILED, USAGE, NOTHING_MATCHED = 1, 2, 3
TENANTS = """
[tenant.team-a]
certificates = ["spiffe://example.org/team-a", "Engine-A.example.org"]
[tenant.team-b]
certificates = ["spiffe://example.org/team-b"]
"""
# Of HTTP/2: the preface and an empty SETTINGS frame. A server answers with its own SETTINGS.
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Site:
    """A daemon with a TLS listener, its authority and its files."""

    def __init__(self, bin_dir, folder, extra=""):
        self.bin_dir, self.folder = bin_dir, folder
        self.authority = Authority(folder)
        self.server = self.authority.issue("server", "IP:127.0.0.1,DNS:localhost")
        self.live = Identity(folder / "live.pem", folder / "live.key", folder / "live-ca.pem")
        self.tenants = folder / "tenants.toml"
        self.port = free_port()
        self.address = f"tcp:127.0.0.1:{self.port}"
        self.write(TENANTS)
        self.install(self.server)
        self.trust(self.authority)
        auth = f'tenants = "{self.tenants}"\ntls_cert = "{self.live.cert}"\ntls_key = "{self.live.key}"\ntls_client_ca = "{self.live.ca}"\n'
        self.daemon = Daemon(bin_dir, f'[auth]\n{auth}[tier.dram]\nbytes = "64MiB"\n{extra}', folder=folder, listen=(self.address,))

    def write(self, tenants):
        self.tenants.write_text(tenants)
        self.tenants.chmod(0o644)

    def install(self, identity):
        """The server's own certificate."""
        for source, target, mode in ((identity.cert, self.live.cert, 0o644), (identity.key, self.live.key, 0o400)):
            target.unlink(missing_ok=True)
            shutil.copy(source, target)
            target.chmod(mode)

    def trust(self, *authorities):
        self.live.ca.write_text("".join(authority.cert.read_text() for authority in authorities))
        self.live.ca.chmod(0o644)

    def reload(self, expect="what=certificates"):
        count = lambda: self.daemon.log.read_text().count(expect)  # noqa: E731
        before = count()
        self.daemon.process.send_signal(signal.SIGHUP)
        self.daemon.wait_until("reloaded", lambda: count() > before, 10)

    def kvctl(self, identity, *arguments, code=0):
        command = [self.bin_dir / "kvctl", "--json", "--timeout", "3s", "--target", self.address, *identity.flags(), *map(str, arguments)]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    def counter(self, name):
        return self.daemon.ask("status")["counters"][name]

    def talk(self, identity=None, alpn=("h2",), hello=HELLO, version=None):
        """What the server says first; b"" if it hangs up, ssl.SSLError if it refuses."""
        with self.connect(identity, alpn, version) as stream:
            stream.sendall(hello)
            return stream.recv(100)

    def connect(self, identity=None, alpn=("h2",), version=None):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.authority.cert)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        if version:
            context.maximum_version = version
        if identity:
            context.load_cert_chain(identity.cert, identity.key)
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        return context.wrap_socket(raw, server_hostname="localhost")

    def refuses(self, identity, **options):
        try:
            return self.talk(identity, **options) == b""
        except (ssl.SSLError, ConnectionError):
            return True


@pytest.fixture(scope="module")
def site(bin_dir):
    folder = Path(tempfile.mkdtemp(prefix="kvstore-tls-"))
    made = Site(bin_dir, folder)
    try:
        with made.daemon:
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def team_a(site):
    return site.authority.issue("a", "URI:spiffe://example.org/team-a")


@pytest.fixture(scope="module")
def team_b(site):
    return site.authority.issue("b", "URI:spiffe://example.org/team-b,DNS:unlisted.example.org")


@pytest.fixture(autouse=True)
def as_before(site):
    """Whatever a test did to the files, the next one finds them as they were."""
    yield
    site.write(TENANTS)
    site.install(site.server)
    site.trust(site.authority)
    if site.daemon.process.poll() is None:
        site.reload()


def test_a_certificate_is_its_tenant_and_no_other(site, team_a, team_b, make_prompt, tmp_path):
    prompt = make_prompt(150, 81)  # several messages of 1 MiB
    mine = site.kvctl(team_a, "open", "chat", *SPEC_FLAGS)["fingerprint"]
    assert site.kvctl(team_a, "put", "chat", *prompt.put_arguments())["stored_blocks"] == 150
    found = site.kvctl(team_a, "get", "chat", "--tokens", prompt.tokens_path, "--out", tmp_path / "out")
    assert found["matched_blocks"] == 150 and (tmp_path / "out").read_bytes() == prompt.data
    # DNS names, in any case, are as good as URIs.
    other = site.authority.issue("dns", "DNS:engine-a.EXAMPLE.org")
    assert site.kvctl(other, "match", "chat", "--tokens", prompt.tokens_path)["matched_blocks"] == 150
    assert site.kvctl(team_b, "open", "chat", *SPEC_FLAGS)["fingerprint"] != mine
    assert site.kvctl(team_b, "match", "chat", "--tokens", prompt.tokens_path, code=NOTHING_MATCHED)["matched_blocks"] == 0
    for command in (("match", mine, "--tokens", prompt.tokens_path), ("clear", mine)):
        assert site.kvctl(team_b, *command, code=FAILED)["error"]["code"] == "NOT_FOUND"
    error = site.kvctl(team_b, "open", "x", *SPEC_FLAGS, "--tenant", "team-a", code=FAILED)["error"]
    assert error["code"] == "PERMISSION_DENIED"
    assert site.kvctl(team_a, "status", code=FAILED)["error"]["code"] == "PERMISSION_DENIED", "no Admin service on TCP"


def s_client(site, *arguments):
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{site.port}", "-CAfile", str(site.authority.cert), "-alpn", "h2", "-ign_eof",
               *map(str, arguments)]
    done = subprocess.run(command, input=HELLO + b"\n", capture_output=True, timeout=30, check=False)
    return (done.stdout + done.stderr).decode(errors="replace")


def test_s_client_sees_the_alerts(site):
    before = site.counter("tls_refused_handshake")
    expired = site.authority.issue("expired", "URI:spiffe://example.org/team-a", days=-1)
    (site.folder / "other").mkdir(exist_ok=True)
    forged = Authority(site.folder / "other", "ca").issue("a", "URI:spiffe://example.org/team-a")
    assert "alert certificate required" in s_client(site)
    assert "alert certificate expired" in s_client(site, "-cert", expired.cert, "-key", expired.key)
    assert "alert unknown ca" in s_client(site, "-cert", forged.cert, "-key", forged.key)
    assert "alert protocol version" in s_client(site, "-tls1_2")
    assert site.counter("tls_refused_handshake") >= before + 4


def test_certificates_that_nobody_lists_are_refused(site, team_a, team_b):
    issue = site.authority.issue
    assert site.talk(team_a) and site.talk(team_b), "what is accepted looks different"
    server_only = ("extendedKeyUsage=serverAuth",)
    for name, san, extensions in (
            ("unlisted", "URI:spiffe://example.org/team-c", ()),
            ("longer", "URI:spiffe://example.org/team-a/x", ()),
            ("nameless", None, ()),
            ("spiffe://example.org/team-a", "DNS:x.example", ()),  # the subject counts for nothing
            ("wildcard", "DNS:*.example.org", ()),
            ("of-two", "URI:spiffe://example.org/team-a,URI:spiffe://example.org/team-b", ()),
            ("disguised", "DNS:spiffe://example.org/team-a", ()),
            ("mail", "email:engine-a.example.org@x", ()),
            ("server-only", "URI:spiffe://example.org/team-a", server_only),
            ("many", ",".join(f"DNS:n{i}.example" for i in range(200)) + ",URI:spiffe://example.org/team-a", ())):
        identity = issue(name.replace("/", "_").replace(":", ""), san, extensions=extensions)
        assert site.refuses(identity), name
    assert site.counter("tls_refused_name") >= 6


def test_other_protocols_and_versions_are_refused(site, team_a):
    assert site.refuses(team_a, alpn=())
    assert site.refuses(team_a, alpn=("http/1.1",))
    assert site.refuses(team_a, hello=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert site.refuses(team_a, version=ssl.TLSVersion.TLSv1_2)
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as plain:
        plain.sendall(HELLO)
        try:
            assert b"PRI" not in plain.recv(100) and plain.recv(100) == b""
        except ConnectionError:
            pass
    assert site.talk(team_a)


def test_damaged_handshakes_harm_nobody(site, team_a):
    """A real ClientHello and a real certificate message with bytes changed: 300 of them."""
    random.seed(5)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    for _ in range(300):
        damaged = bytearray(hello)
        for _ in range(random.randrange(1, 8)):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        with socket.create_connection(("127.0.0.1", site.port), timeout=10) as raw:
            raw.sendall(bytes(damaged[:random.randrange(1, len(damaged) + 1)]))
    assert site.talk(team_a)
    assert site.daemon.process.poll() is None


def test_client_certificates_that_are_no_certificates(site):
    """What a client may send as its certificate: damaged DER, a chain of 300."""
    good = site.authority.issue("cut", "URI:spiffe://example.org/team-a")
    der = bytearray(ssl.PEM_cert_to_DER_cert(good.cert.read_text()))
    chain = site.folder / "chain.pem"
    chain.write_text(good.cert.read_text() + site.authority.cert.read_text() * 300)
    assert site.refuses(Identity(chain, good.key, None)), "more than 32 KiB"
    random.seed(6)
    for _ in range(40):
        damaged = bytearray(der)
        damaged[random.randrange(60, len(der))] ^= 1 << random.randrange(8)
        path = site.folder / "damaged.pem"
        path.write_text(ssl.DER_cert_to_PEM_cert(bytes(damaged)))
        try:
            assert site.refuses(Identity(path, good.key, None))
        except ssl.SSLError:
            pass  # our own side would not send it
    assert site.talk(good)


def test_the_client_checks_the_server(site, team_a):
    (site.folder / "third").mkdir(exist_ok=True)
    stranger = Authority(site.folder / "third", "ca")
    error = site.kvctl(Identity(team_a.cert, team_a.key, stranger.cert), "open", "x", *SPEC_FLAGS, code=FAILED)["error"]
    assert error["code"] in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
    site.install(site.authority.issue("elsewhere", "DNS:elsewhere.example"))
    site.reload()
    error = site.kvctl(team_a, "open", "x", *SPEC_FLAGS, code=FAILED)["error"]
    assert error["code"] in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


def test_a_new_server_certificate_is_served_after_a_reload_and_a_bad_one_is_not(site, team_a):
    with site.connect(team_a) as before:
        before.sendall(HELLO)
        assert before.recv(100)
        old = before.getpeercert()["serialNumber"]
        renewed = site.authority.issue("renewed", "IP:127.0.0.1,DNS:localhost")
        site.install(renewed)
        site.reload()
        with site.connect(team_a) as after:
            assert after.getpeercert()["serialNumber"] != old
        assert answers(before), "the connection of before goes on"
    new = site.live.key.read_bytes()
    for damage, part in ((lambda: site.live.key.chmod(0o640), "0400 or 0600"),
                         (lambda: site.live.key.write_bytes(team_a.key.read_bytes()), "is not the key of"),
                         (lambda: site.live.key.write_text("nonsense"), "not an unencrypted PEM private key"),
                         (lambda: site.live.cert.write_text("nonsense"), "not PEM certificates"),
                         (lambda: site.live.ca.write_text(""), "not PEM certificates")):
        site.install(renewed)
        site.trust(site.authority)
        site.live.key.chmod(0o600)
        damage()
        site.reload(expect="not reloaded")
        status = site.daemon.ask("status")
        assert status["health"] == "degraded" and any(part in line for line in status["degraded"]), status["degraded"]
        assert site.talk(team_a), "the old ones go on"
    assert new.decode() not in site.daemon.log.read_text()


def test_what_is_no_longer_accepted_ends_with_a_reload(site, team_a, team_b):
    (site.folder / "second").mkdir(exist_ok=True)
    second = Authority(site.folder / "second", "ca2")
    visitor = second.issue("a", "URI:spiffe://example.org/team-a")
    site.trust(site.authority, second)
    site.reload()

    streams = {}
    for name, identity in (("a", team_a), ("b", team_b), ("visitor", visitor)):
        streams[name] = site.connect(identity)
        streams[name].sendall(HELLO)
        assert streams[name].recv(100)
        assert answers(streams[name])
    site.trust(site.authority)  # the second authority goes
    site.reload()
    site.daemon.wait_until("one has ended", lambda: site.counter("tls_ended_by_reload") >= 1, 5)
    assert [name for name in streams if answers(streams[name])] == ["a", "b"]
    site.write(TENANTS.replace("spiffe://example.org/team-b", "spiffe://example.org/gone"))  # a name goes
    site.reload()
    time.sleep(0.2)
    assert [name for name in ("a", "b") if answers(streams[name])] == ["a"]
    assert site.refuses(team_b)
    for stream in streams.values():
        stream.close()


def test_silent_connections_end_in_time_and_keep_nobody_out(bin_dir):
    folder = Path(tempfile.mkdtemp(prefix="kvstore-tls-silent-"))
    site = Site(bin_dir, folder, extra='[limits]\nhandshake_time = "2s"\n')
    identity = site.authority.issue("a", "URI:spiffe://example.org/team-a")
    try:
        with site.daemon:
            silent = [socket.create_connection(("127.0.0.1", site.port), timeout=10) for _ in range(300)]
            start = time.monotonic()
            assert site.talk(identity), "let in beside 300 that say nothing"
            assert time.monotonic() - start < 2
            assert site.counter("tls_handshakes") <= 128
            for stream in silent:
                stream.settimeout(10)
                assert stream.recv(1) == b""
            # Through the handshake and silent then: the same.
            with site.connect(identity) as stream:
                assert stream.recv(1) == b""
            site.daemon.wait_until("nothing is left", lambda: site.counter("tls_handshakes") == 0, 5)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_reader_that_does_not_read_holds_little(site, team_a, make_prompt):
    prompt = make_prompt(1000, 82)  # 16 MiB
    site.kvctl(team_a, "open", "slow", *SPEC_FLAGS)
    site.kvctl(team_a, "put", "slow", *prompt.put_arguments())
    statm = Path(f"/proc/{site.daemon.process.pid}/statm")
    own_bytes = lambda: (int(statm.read_text().split()[1]) - int(statm.read_text().split()[2])) * 4096  # noqa: E731
    before = own_bytes()
    flags = [str(word) for word in team_a.flags()]
    command = [str(bin) for bin in (site.bin_dir / "kvctl", "--target", site.address, *flags, "get", "slow", "--tokens",
                                    prompt.tokens_path, "--out", site.folder / "out")]
    readers = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(4)]
    time.sleep(0.05)
    for reader in readers:
        reader.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    assert own_bytes() - before < 32 << 20
    for reader in readers:
        reader.send_signal(signal.SIGCONT)
    for reader in readers:
        assert reader.wait(60) == 0


def answers(stream):
    """Whether a connection still serves HTTP/2: a ping comes back."""
    stream.settimeout(5)
    try:
        stream.sendall(bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + b"pingpong")
        got = b""
        while b"pingpong" not in got:
            piece = stream.recv(1000)
            if not piece:
                return False
            got += piece
        return True
    except (ssl.SSLError, OSError):
        return False


def listening_ports(pid):
    """Local TCP listeners of a process, as ss shows them."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    rows = []
    for table in ("tcp", "tcp6"):
        rows += [line.split() for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]]
    return [row[1] for row in rows if row[3] == "0A" and row[9] in inodes]


def test_by_default_no_tcp_port_answers(bin_dir, site):
    with Daemon(bin_dir, '[tier.dram]\nbytes = "16MiB"\n') as daemon:
        assert listening_ports(daemon.process.pid) == []
    assert len(listening_ports(site.daemon.process.pid)) == 1, "what is open is seen"


def start(bin_dir, *words):
    command = [bin_dir / "kvstored", "--set", "tier.dram.bytes=16MiB", *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("words, part", [
    (("--set", "server.listen=tcp:127.0.0.1:1"), "has no TLS"),
    (("--set", "server.listen=tcp:0.0.0.0:1"), "has no TLS"),
    (("--insecure", "--set", "server.listen=tcp:0.0.0.0:1"), "not a loopback address"),
    (("--insecure", "--set", "server.listen=tcp:[::]:1"), "not a loopback address"),
    (("--set", "auth.tls_cert=/x"), "TLS needs all of"),
    (("--set", "auth.tls_cert=/x", "--set", "auth.tls_key=/x", "--set", "auth.tls_client_ca=/x"), "no certificate has a tenant"),
    (("--insecure", "--set", "auth.tenants=/x"), "goes with neither"),
    (("--set", "auth.tenants=/x", "--set", "auth.allow_uids=1"), "are both set"),
    (("--set", "auth.tenants=x"), "an absolute path"),
    (("--set", "server.admin=tcp:127.0.0.1:1"), "not unix:PATH"),
])
def test_what_would_let_in_too_many_is_not_started(bin_dir, words, part):
    code, text = start(bin_dir, *words)
    assert code == USAGE and part in text, text


def test_bad_certificates_of_the_server_are_refused_at_start(site, bin_dir, tmp_path):
    good = site.server

    def config(**files):
        given = {"cert": good.cert, "key": good.key, "client_ca": good.ca, **files}
        words = [word for name, path in given.items() for word in ("--set", f"auth.tls_{name}={path}")]
        return ("--check-config", "--set", f"auth.tenants={site.tenants}", *words)

    assert start(bin_dir, *config())[0] == 0
    expired = site.authority.issue("old", "IP:127.0.0.1", days=-1)
    encrypted, loose, cut, pipe = (tmp_path / name for name in ("encrypted.key", "loose.key", "cut.pem", "pipe"))
    openssl("ec", "-in", good.key, "-aes256", "-passout", "pass:x", "-out", encrypted)
    encrypted.chmod(0o600)
    shutil.copy(good.key, loose)
    loose.chmod(0o644)
    cut.write_text(good.cert.read_text() + good.cert.read_text()[:200])
    os.mkfifo(pipe, 0o600)
    for files, part in (({"cert": expired.cert, "key": expired.key}, "has expired"),
                        ({"key": encrypted}, "not an unencrypted PEM private key"),
                        ({"key": loose}, "valid: 0400 or 0600"),
                        ({"key": pipe}, "not a regular file"),
                        ({"key": expired.key}, "is not the key of"),
                        ({"cert": cut}, "not PEM certificates"),
                        ({"client_ca": good.key}, "not PEM certificates"),
                        ({"cert": tmp_path}, "not a regular file"),
                        ({"cert": tmp_path / "none"}, "cannot open")):
        code, text = start(bin_dir, *config(**files))
        assert code == USAGE and part in text, text
    if os.geteuid() == 0:
        shutil.copy(good.key, loose)
        loose.chmod(0o400)
        os.chown(loose, 61400, 61400)
        code, text = start(bin_dir, *config(key=loose))
        assert code == USAGE and "belongs to uid 61400" in text
