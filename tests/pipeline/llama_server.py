"""Runs llama.cpp's server on a GGUF file until its standard input ends; prints the server's address.

In a process of its own, because its library and the BLAS that sqlora loads for MLX do not bear each other.
"""

import sys

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx = 4096
params.n_parallel = 1
params.n_gpu_layers = 0
# Not the defaults, which round keys, values and queries to float16.
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.warmup = False
params.cpuparams.n_threads = 2
server = xllamacpp.Server(params)
print(f"address: {server.listening_address}", flush=True)
sys.stdin.read()
