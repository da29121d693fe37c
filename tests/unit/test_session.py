"""What a run is refused for before anything is measured."""

from __future__ import annotations

import pytest

from bench.container.spec_records import User
from bench.errors import UsageError
from bench.verbs.session import require_root


def test_a_guest_s_payload_is_root_so_an_image_s_user_must_be() -> None:
    require_root(User(0, 0), "plain")
    for user in (User(1234, 0), User(0, 77)):
        with pytest.raises(UsageError, match=f"image web runs as user {user.uid}:{user.gid}") as caught:
            require_root(user, "web")
        assert caught.value.hint == "--drivers process,container, or an image without USER"
