"""The engine's own operations, each with a reference in plain torch."""

from webssl_fast.ops._library import cuda_architectures, force_reference, reference_forced

__all__ = ["cuda_architectures", "force_reference", "reference_forced"]
