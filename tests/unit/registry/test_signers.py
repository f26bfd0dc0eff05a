"""Keys that never leave their place: a PKCS #11 token, and services that are not there."""

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from slmops.domain.errors import InvalidInputError, UnavailableError, UntrustedError
from slmops.registry.key_changes import KeyChanges, Wanted
from slmops.registry.key_folder import KeyAccess, KeyPlan, create_keys
from slmops.registry.signers import StoredSigner, import_signer, open_signer
from slmops.registry.signing import ReleaseKeys
from slmops.registry.trust import TrustedRegistry
from slmops.testing.sample_release import (
    SAMPLE_TIME,
    publish_sample,
    sample_release,
)

PIN = "1234"
LIBRARIES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
)
ACCESS = KeyAccess(secrets=lambda name: {"pin": PIN}[name])

CLOUDS = {
    "awskms:1234": ("boto3", "boto3"),
    "gcpkms:projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1": (
        "google.cloud.kms",
        "google-cloud-kms",
    ),
    "azurekms:vault/key": ("azure.identity", "azure-identity"),
}


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make a token with two keys, and name its library in the environment."""
    library = next((path for path in LIBRARIES if Path(path).exists()), None)
    tool = shutil.which("softhsm2-util")
    if library is None or tool is None:
        pytest.skip("SoftHSM 2 is not installed (Debian: softhsm2)")
    pkcs11 = pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed")
    folder = tmp_path_factory.mktemp("token")
    (folder / "tokens").mkdir()
    config = folder / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {folder / 'tokens'}\n")
    patch = pytest.MonkeyPatch()
    patch.setenv("SOFTHSM2_CONF", str(config))
    patch.setenv("PYKCS11LIB", library)
    create = ("--init-token", "--free", "--label", "release", "--so-pin", "9999")
    subprocess.run([tool, *create, "--pin", PIN], check=True, capture_output=True)
    from pkcs11.util.ec import encode_named_curve_parameters

    found = pkcs11.lib(library).get_token(token_label="release")
    with found.open(rw=True, user_pin=PIN) as session:
        for number in (2, 3):
            parameters = session.create_domain_parameters(
                pkcs11.KeyType.EC,
                {
                    pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters(
                        "secp256r1"
                    )
                },
                local=True,
            )
            parameters.generate_keypair(
                store=True, id=bytes([number]), label=f"key {number}"
            )
    yield
    patch.undo()


@pytest.mark.usefixtures("token")
def test_a_release_is_signed_in_a_token_and_a_device_believes_it(
    tmp_path: Path,
) -> None:
    stored = import_signer("hsm:2?label=release", ACCESS.secrets)
    root = import_signer("hsm:3?label=release", ACCESS.secrets)
    workspace = tmp_path / "workspace"
    plan = KeyPlan(root_keys=0, stored={"targets": (stored,), "root": (root,)})
    create_keys(workspace / "keys", plan, now=SAMPLE_TIME, access=ACCESS)
    assert not (workspace / "keys" / "targets.key").exists()
    keys = ReleaseKeys.load(workspace / "keys", secrets=ACCESS.secrets)
    sample = publish_sample(workspace, keys=keys)

    def device() -> TrustedRegistry:
        return TrustedRegistry(
            tmp_path / "device",
            sample.keys.root_json,
            sample.workspace.registry,
            now=lambda: SAMPLE_TIME,
        )

    assert device().release("sample-1")[0] == sample.releases[0]
    # From the token to a file, signed by the root key in the token.
    changes = KeyChanges(workspace / "keys", sample.catalog, ACCESS)
    assert changes.rotate(Wanted(role="targets"), now=SAMPLE_TIME).published
    assert device().release("sample-1")[0] == sample.releases[0]
    places = {row.role: row.place for row in changes.rows()}
    assert places["targets"] == "file:targets-2.key"
    assert places["root"] == root.uri
    again = ReleaseKeys.load(workspace / "keys", root=changes.newest_root())
    publish_sample(workspace, [sample_release(2)], keys=again)
    assert device().release("sample-2")[0].version == 2


@pytest.mark.usefixtures("token")
def test_a_wrong_pin_a_missing_key_and_no_token_are_said(tmp_path: Path) -> None:
    stored = import_signer("hsm:2?label=release", ACCESS.secrets)
    with pytest.raises(UnavailableError, match=r"hsm:2\?label=release: PinIncorrect"):
        open_signer(stored, lambda _: "0000").sign(b"x")
    with pytest.raises(UnavailableError, match="could not find ECDSA key"):
        import_signer("hsm:9?label=release", ACCESS.secrets)
    with pytest.raises(UnavailableError, match="No PKCS#11 token found"):
        import_signer("hsm:2?label=other", ACCESS.secrets)


@pytest.mark.usefixtures("token")
def test_a_token_with_another_key_signs_nothing_that_counts() -> None:
    two = import_signer("hsm:2?label=release", ACCESS.secrets)
    three = import_signer("hsm:3?label=release", ACCESS.secrets)
    swapped = StoredSigner(
        uri=three.uri,
        keyid=two.keyid,
        keytype=two.keytype,
        scheme=two.scheme,
        public=two.public,
    )
    with pytest.raises(UntrustedError, match="signed with another key"):
        open_signer(swapped, ACCESS.secrets).sign(b"x")


@pytest.mark.parametrize("uri", CLOUDS)
def test_the_library_that_is_missing_is_named(uri: str) -> None:
    module, library = CLOUDS[uri]
    try:
        here = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        here = False
    if here:
        pytest.skip(f"{library} is installed here")
    with pytest.raises(UnavailableError, match=f"install {library}"):
        import_signer(uri, ACCESS.secrets)


@pytest.mark.parametrize("uri", ["", "hsm:", "vault:x", "file:root.key", "nonsense"])
def test_what_is_no_uri_of_a_key_is_refused(uri: str) -> None:
    with pytest.raises(InvalidInputError, match="a key's URI must be one of hsm:…"):
        import_signer(uri, ACCESS.secrets)
