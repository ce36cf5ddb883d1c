"""The precisions in which a file is not its model, but a rounded one."""

INT8 = "int8"
"""The products of recurrent layers are of eight bits."""

FLOAT16 = "float16"
"""The weights are stored in 16 bits, and everything is computed in float32."""

ROUNDED = (INT8, FLOAT16)
"""A file in one of these is compared with a simulation of it, and what rounding costs is reported."""
