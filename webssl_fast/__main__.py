import sys

from webssl_fast.cli import main

sys.exit(main())
