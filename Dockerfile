# rocm-passes in a ROCm container of PyTorch. The container's torch and Triton stay as they are.
#
#     docker build -t rocm-passes .
#     docker run --rm --device=/dev/kfd --device=/dev/dri --group-add video --group-add render \
#         --shm-size 8g rocm-passes doctor
#
# Another base: --build-arg BASE=rocm/pytorch:<tag>. It needs torch 2.11 or newer and Python 3.11 or newer.
ARG BASE=rocm/pytorch:latest
FROM ${BASE}

COPY . /opt/rocm-passes
WORKDIR /opt/rocm-passes

# The build fails where the installation has changed torch, or where torch is too old.
RUN python -c "import torch; print(torch.__version__)" > /tmp/torch-before \
    && python -m pip install --no-cache-dir ".[models]" \
    && python -c "import torch; print(torch.__version__)" | diff /tmp/torch-before - \
    && python -c "import rocm_passes; rocm_passes.rocm_diffusion" \
    && rm /tmp/torch-before

WORKDIR /workspace
ENTRYPOINT ["rocm-passes"]
CMD ["doctor"]
