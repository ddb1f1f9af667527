"""Backends of organics-core: what the array API standard lacks, one module per library."""
