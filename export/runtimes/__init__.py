"""Runtimes other than onnxruntime: one small file each, which opens a file and runs it, in a process of its own."""
