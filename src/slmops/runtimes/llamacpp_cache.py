"""Types of the attention's cache, as llama.cpp names them; server and scorer agree."""


def cache_types(kv_cache: str) -> tuple[str, str]:
    """Return ggml's names of the types of keys and of values.

    >>> cache_types("q8_0"), cache_types("k-q8_0")
    (('Q8_0', 'Q8_0'), ('Q8_0', 'F16'))
    """
    keys = kv_cache.removeprefix("k-").upper()
    return keys, "F16" if kv_cache.startswith("k-") else keys


def needs_flash_attention(kv_cache: str) -> bool:
    """Tell whether llama.cpp computes with such a cache only by flash attention."""
    return cache_types(kv_cache)[1] != "F16"
