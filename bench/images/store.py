"""The images of this machine: by name, digest, file or registry reference, and the trees made from them."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from bench.errors import HostError, ImageError, UsageError
from bench.images import ballast, build, oci
from bench.images.archive import import_path
from bench.images.changes import Changes
from bench.images.commit import add_layer, commit
from bench.images.export import Form, export
from bench.images.layers import LayerMarks, unpack
from bench.images.layout import Layout, publish
from bench.images.merge import merge
from bench.images.oci import Config, Descriptor, Execution, ImageDetails, LayerDetails, Manifest, decode
from bench.images.stream import open_layer
from bench.images.tools import run_tool
from bench.model import Image

log = logging.getLogger(__name__)

_REMOTE = ("docker://",)
_TRANSPORTS = (
    *_REMOTE, "oci:", "oci-archive:", "docker-archive:", "docker-daemon:", "containers-storage:", "dir:",
)  # fmt: skip
_DIGEST = re.compile(r"(sha256:)?[0-9a-f]{4,64}")
_TAIL = 1000  # characters of what skopeo says
_FETCH_TIMEOUT = 1800.0  # seconds; registries and lines can be slow


class ImageStore:
    """Images under `root`, with a cache of what is made from them. Nothing is created before the first import.

    Several processes may use one store at a time.
    """

    def __init__(self, root: Path) -> None:
        self._layout = Layout(root)
        self._privileged = os.geteuid() == 0
        self._kind = "" if self._privileged else f"-{os.geteuid()}"  # others' trees have other owners in them
        self._default: Image | None = None

    # --- images ------------------------------------------------------------------------------------------------

    def resolve(self, reference: str) -> Image:
        """The image `reference` means; imported or built if it is not in the store.

        One of: "default"; with data added, "default+20MiB" (see images.ballast);
        a name in the store; a digest in it (`sha256:...`, or four or more of its characters if only
        one fits); a `docker save` archive, an OCI layout folder or an archive of one; a skopeo reference. Files are
        imported anew each time; a `docker://` reference that is in the store is not fetched again, so that a moving
        tag does not change what is measured (`fetch` does). Raises ImageError if it means nothing, HostError if
        this host lacks what is needed to get it.
        """
        if reference == build.NAME:
            return self._resolve_default()
        if (size := ballast.size_of(reference)) is not None:
            return self._resolve_ballast(reference, size)
        if reference.startswith(_TRANSPORTS) and not reference.startswith(_REMOTE):
            return self.fetch(reference)
        if _is_path(reference):
            return self._import(Path(reference))
        if (entry := self._stored(reference)) is not None:
            return self._image(entry)
        if reference.startswith(_REMOTE):
            return self.fetch(reference)
        if Path(reference).exists():
            return self._import(Path(reference))
        raise self._unknown(reference)

    def build_default(self) -> Image:
        """Build the default image from this host's busybox and our payloads; the same digest each time.

        Raises HostError without busybox or a compiler.
        """
        busybox, programs = build.find_busybox(), build.payload_programs(self._layout.root.parent)
        with self._layout.lock():
            entry = build.build_default(self._layout, busybox, programs)
        self._default = self._image(entry)
        return self._default

    def fetch(self, reference: str) -> Image:
        """Import what skopeo finds under `reference` ("docker://...", "oci:...", ...), also if the store has it.

        A registry on a loopback address may speak plain http; any other must prove who it is.
        """
        with self.writing() as scratch:
            folder = scratch / "fetched"
            argv = ["skopeo", f"--override-arch={oci.ARCHITECTURE}", f"--override-os={oci.SYSTEM}", "copy", "--quiet"]
            argv += ["--src-tls-verify=false"] if _is_loopback(reference) else []
            done = run_tool([*argv, reference, f"oci:{folder}:latest"], timeout=_FETCH_TIMEOUT, check=False)
            if done.status:
                raise ImageError(f"skopeo can't get {reference}: {done.stderr.strip()[-_TAIL:]}")
            return self._image(import_path(self._layout, folder, reference))

    def images(self) -> Sequence[Image]:
        """What the store holds, by name; an image that can't be read is left out with a warning."""
        found = []
        for entry in sorted(self._layout.entries(), key=lambda entry: entry.name or ""):
            try:
                found.append(self._image(entry))
            except ImageError as error:
                log.warning("image %s left out: %s", entry.name, error.message)
        return found

    def details(self, reference: str) -> ImageDetails:
        """What the image says of itself, layer by layer."""
        image = self.resolve(reference)
        entry = self._entry(image)
        manifest, config = self._records(entry)
        rows = zip(manifest.layers, config.rootfs.diff_ids, oci.sizes_of(entry), strict=True)
        layers = tuple(LayerDetails(one.digest, diff_id, one.media_type, one.size, size) for one, diff_id, size in rows)
        return ImageDetails(image, layers, config.architecture, config.os, config.created)

    def execution(self, image: Image) -> Execution:
        """How the image says it is to be run."""
        return self._records(self._entry(image))[1].config or Execution()

    def export(self, image: Image, path: Path, form: Form) -> None:
        """Write the image to `path`, as an archive or a folder; the same bytes each time.

        Raises UsageError if something is there already, ImageError if the store is damaged, HostError if `path` can't
        be written.
        """
        export(self._layout, self._entry(image), path, form)

    def commit(self, image: Image, changes: Changes, name: str) -> Image:
        """A new image `name`: `image` with what a container changed as one more layer; its configuration stays.

        The same changes give the same digest. Raises UsageError for a name that `resolve` would take for something
        else, ImageError for changes that no layer can hold.
        """
        taken = name == build.NAME or ballast.size_of(name) is not None
        if taken or name.startswith(_TRANSPORTS) or _is_path(name) or _DIGEST.fullmatch(name) or not name:
            raise UsageError(f"an image can't be called {name!r}", hint="a name like web:2")
        with self._layout.lock():
            return self._image(commit(self._layout, self._entry(image), changes, name))

    def extend(self, image: Image, layer: bytes, name: str) -> Image:
        """A new image `name`: `image` with one more layer, the tar `layer`; its configuration stays."""
        with self._layout.lock():
            descriptor = self._layout.put_bytes(layer, oci.LAYER)
            return self._image(add_layer(self._layout, self._entry(image), descriptor, name))

    def _entry(self, image: Image) -> Descriptor:
        """The image's own entry, which holds the sizes of its layers."""
        for entry in self._layout.entries():
            if (entry.name, entry.digest) == (image.name, image.digest):
                return entry
        raise ImageError(f"image {image.name} ({image.digest}) is not in the store any more", hint="import it again")

    def _resolve_default(self) -> Image:
        """Built anew once a process: it costs little, and busybox may have been upgraded. Else the stored one."""
        if self._default is not None:
            return self._default
        try:
            return self.build_default()
        except HostError:
            if (entry := self._stored(build.NAME)) is None:
                raise
            return self._image(entry)

    def _resolve_ballast(self, reference: str, size: int) -> Image:
        """Made anew only if the default image is another one now."""
        base = self._resolve_default()
        if (entry := self._stored(reference)) is not None and self._image(entry).layers[:-1] == base.layers:
            return self._image(entry)
        with self._layout.lock():
            layer = ballast.store_layer(self._layout, size)
            return self._image(add_layer(self._layout, self._entry(base), layer, reference))

    def _import(self, path: Path) -> Image:
        with self._layout.lock():
            return self._image(import_path(self._layout, path))

    def _stored(self, reference: str) -> Descriptor | None:
        entries = self._layout.entries()
        for entry in entries:
            if reference in (entry.name, entry.digest):
                return entry
        if not _DIGEST.fullmatch(reference):
            return None
        wanted = f"sha256:{reference.removeprefix('sha256:')}"
        fitting = {entry.digest: entry for entry in entries if entry.digest.startswith(wanted)}
        if len(fitting) > 1:
            raise ImageError(f"{reference}: fits several images: {', '.join(sorted(fitting))}")
        return next(iter(fitting.values()), None)

    def _unknown(self, reference: str) -> ImageError:
        names = ", ".join(sorted(entry.name or entry.digest for entry in self._layout.entries())) or "nothing"
        message = f"no image {reference!r}: no file of that name, and the store has: {names}"
        return ImageError(message, hint=f"{build.NAME}, a `docker save` archive, an OCI layout, or docker://NAME")

    def _records(self, entry: Descriptor) -> tuple[Manifest, Config]:
        where = str(self._layout.blob(entry.digest))
        manifest = decode(self._layout.read_json(entry.digest), Manifest, where)
        where = str(self._layout.blob(manifest.config.digest))
        return manifest, decode(self._layout.read_json(manifest.config.digest), Config, where)

    def _image(self, entry: Descriptor) -> Image:
        return oci.make_image(entry, self._records(entry)[1])

    # --- what is made from them --------------------------------------------------------------------------------

    def layer_trees(self, image: Image) -> tuple[Path, ...]:
        """The image's layers unpacked, lowest first, as overlayfs takes them; a layer is unpacked once for all images.

        Raises ImageError for a layer that is damaged or unsafe, and HostError where a layer needs root.
        """
        layers = self.unpacked(image)
        if not self._privileged and any(marks.whiteouts or marks.opaque for _, marks in layers):
            raise HostError(f"image {image.name}: only root can make overlayfs' whiteouts", hint="run it with sudo")
        hiding = [number for number, (_, marks) in enumerate(layers) if b"" in marks.opaque]
        return tuple(tree for tree, _ in layers[max(hiding, default=0) :])  # overlayfs knows no opaque root

    def tree(self, image: Image) -> Path:
        """The image as one tree, made once and shared: what a bare process writes in it stays there."""
        path = self._trees("images", image.digest)
        if not path.exists():
            self._make(path, partial(merge, self.unpacked(image)))
        return path

    def disk_path(self, image: Image, name: str) -> Path:
        """Where a disk made from the image is kept; it need not exist."""
        return self._layout.root / f"disks{self._kind}" / f"{oci.hex_of(image.digest, image.name)}-{name}"

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Hold the store to add to it; gives a scratch folder on its file system."""
        with self._layout.lock(), self._layout.scratch() as scratch:
            (self._layout.root / f"disks{self._kind}").mkdir(exist_ok=True)
            yield scratch

    def _trees(self, kind: str, digest: str) -> Path:
        return self._layout.root / f"trees{self._kind}" / kind / oci.hex_of(digest, str(self._layout.root))

    def unpacked(self, image: Image) -> list[tuple[Path, LayerMarks]]:
        """The image's layers with what each removes, lowest first: what `merge` takes."""
        found = []
        for number, diff_id in enumerate(image.layers):
            folder = self._trees("layers", diff_id)
            if not folder.exists():
                self._make(folder, partial(self._unpack, image, number))
            marks = msgspec.json.decode((folder / "marks.json").read_bytes(), type=LayerMarks)
            found.append((folder / "tree", marks))
        return found

    def _unpack(self, image: Image, number: int, folder: Path) -> None:
        """Unpack a layer into `folder`, verified once more: the blob may have been damaged since its import."""
        layer = self._layer(image, number)
        blob = self._layout.blob(layer.digest)
        label = f"image {image.name}, layer {layer.digest}"
        (folder / "tree").mkdir()
        (folder / "tree").chmod(0o755)
        with open_layer(blob, compressed=oci.is_gzip(layer, label), label=label) as reader:
            try:
                marks = unpack(reader, folder / "tree", privileged=self._privileged)
            except (ImageError, HostError) as error:
                raise type(error)(f"{label}: {error.message}", hint=error.hint) from error
            reader.drain()
        if reader.digest != image.layers[number]:
            raise ImageError(f"{blob}: damaged: unpacks to {reader.digest}, expected {image.layers[number]}")
        (folder / "marks.json").write_bytes(msgspec.json.encode(marks))

    def _layer(self, image: Image, number: int) -> Descriptor:
        manifest = decode(self._layout.read_json(image.digest), Manifest, f"image {image.name}")
        return manifest.layers[number]

    def _make(self, path: Path, fill: Callable[[Path], None]) -> None:
        """Make the folder `path` by `fill`, complete or not at all. Private: it may hold set-id programs of anybody."""
        with self._layout.lock(), self._layout.scratch() as scratch:
            if path.exists():  # another process made it while we waited
                return
            made = scratch / "made"
            made.mkdir(mode=0o755)
            fill(made)
            os.sync()  # one call for thousands of files; after a power cut the name must not be there without them
            trees = path.parent.parent
            trees.mkdir(mode=0o700, exist_ok=True)
            path.parent.mkdir(exist_ok=True)
            publish(made, path)


def _is_path(reference: str) -> bool:
    """Whether it can only be meant as a file: names of images hold slashes too."""
    return reference.startswith(("/", "./", "../")) or reference.endswith((".tar", ".tar.gz", ".tgz"))


def _is_loopback(reference: str) -> bool:
    """Whether it names a registry by a loopback address: by an address, because names lead anywhere."""
    if not reference.startswith(_REMOTE):
        return False
    try:
        return ipaddress.ip_address(urlsplit(reference).hostname or "").is_loopback
    except ValueError:
        return False
