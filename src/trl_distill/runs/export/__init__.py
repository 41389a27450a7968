"""A trained student in the forms in which it is handed over: one file a form, and a count of equal completions.

api.py      export(): checks, writes, verifies
student.py  the student of a finished run: its files, its stop tokens, what a user's message becomes
folder.py   the folder that is written, and its manifest
merged.py   merged weights, for transformers and whatever reads its files
vllm.py     serve.sh
gguf.py     a GGUF file by llama.cpp's converter, and a Modelfile
ollama.py   the same, given to ollama
mlx.py      weights for Apple's MLX
rows.py     held-out rows, as a served student is asked them
server.py   asks a server on this machine
verify.py   counts the completions that equal the student's
"""
