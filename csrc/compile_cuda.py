"""Runs one nvcc command of the build and keeps, beside the object, what ptxas says of each kernel: OBJECT.ptxas.

CMake calls it as the launcher of the CUDA compiler. ptxas's words about registers and spills are kept from the screen;
warnings and errors are not.
"""

import re
import subprocess
import sys
from pathlib import Path


def main(command: list[str]) -> int:
    if "-o" not in command or "-c" not in command:
        return subprocess.run(command, check=False).returncode
    done = subprocess.run([*command, "-Xptxas", "-v"], stderr=subprocess.PIPE, text=True, check=False)
    Path(command[command.index("-o") + 1] + ".ptxas").write_text(done.stderr)
    about_kernels = re.compile(r"^(ptxas info|\s+\d+ bytes stack frame)")
    sys.stderr.writelines(line for line in done.stderr.splitlines(True) if not about_kernels.match(line))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
