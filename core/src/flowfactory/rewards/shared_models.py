"""What several components hold together, such as one model for many labels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")

_held: WeakValueDictionary[Hashable, object] = WeakValueDictionary()
_lock = threading.RLock()  # what is made may itself share


def load_shared(make: Callable[..., T], *arguments: Hashable) -> T:
    """``make(*arguments)``, made once and the same object for as long as anyone holds it.

    Two labels of one reward, or a reward that trains and evaluates, so read their weights once. The result must take weak
    references, as instances of plain classes do.
    """
    key = (make, *arguments)
    with _lock:
        found = _held.get(key)
        if found is None:
            found = make(*arguments)
            _held[key] = found
    return found  # type: ignore[return-value]
