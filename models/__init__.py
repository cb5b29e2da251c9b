"""The network and everything that runs it."""

import logging

# bitsandbytes, which peft imports if it is installed, warns on CPUs with AVX-512 BF16 that a kernel for 4-bit weights
# is missing. This project has no 4-bit weights. Other messages of that logger are kept.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "gemm_4bit_forward" not in record.getMessage()
)
