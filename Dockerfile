# syntax=docker/dockerfile:1
# The image of the files in scripts/launch, with the tested versions. EXTRAS are those of setup.py:
#
#   docker build --build-arg EXTRAS=tpu --tag IMAGE .           training on TPUs
#   docker build --build-arg EXTRAS=cuda12,int8 --tag IMAGE .   training on NVIDIA GPUs
#   docker build --build-arg EXTRAS=cuda12,serve --tag IMAGE .  adalink serve
#
#   docker run --rm IMAGE                                       what it can run: adalink doctor
#   docker run --rm --gpus all --volume "$PWD:/work" --workdir /work IMAGE adalink train …
FROM python:3.11-slim

ARG EXTRAS=""
ENV PYTHONUNBUFFERED=1

WORKDIR /opt/adalink_jax
COPY requirements.lock setup.py pyproject.toml LICENSE ./
COPY adalink_jax ./adalink_jax
COPY tasks ./tasks
COPY gin ./gin
RUN python -m pip install --no-cache-dir --root-user-action=ignore --disable-pip-version-check \
        --constraint requirements.lock ".${EXTRAS:+[$EXTRAS]}" \
    && adalink --help >/dev/null

# Away from the sources, so that the installed copy is used.
WORKDIR /work
CMD ["adalink", "doctor"]
