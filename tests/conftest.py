from tests.cuda_on_host import cuda_on_host, thread_order  # noqa: F401  fixtures
