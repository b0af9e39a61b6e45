"""Stand-ins for other machines: without some libraries, or with another GPU and driver.

Each function writes to a folder and returns the environment variables with which a child process
sees that machine. `python -m tests.machines FOLDER PREFIX …` prints the PYTHONPATH of `without`.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.subset import python_path

_HIDING = '''
"""Hides libraries from this process and, since PYTHONPATH is inherited, from its children."""

import sys
from importlib.machinery import PathFinder

PREFIXES = {prefixes}


def is_hidden(name):
    return name.replace("-", "_").lower().startswith(PREFIXES)


class HidingFinder:
    """Finds modules and distributions on sys.path, except hidden ones."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if is_hidden(name) else PathFinder.find_spec(name, path, target)

    @staticmethod
    def find_distributions(*arguments):
        return (d for d in PathFinder.find_distributions(*arguments) if not is_hidden(d.name))

    @staticmethod
    def invalidate_caches():
        PathFinder.invalidate_caches()


# Replace PathFinder instead of preceding it, since importlib.metadata asks every finder.
sys.meta_path[:] = [HidingFinder if each is PathFinder else each for each in sys.meta_path]
'''


def without(folder: Path, *prefixes: str) -> dict[str, str]:
    """A machine without distributions and top-level modules whose names begin with a prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    # Python imports a module of this name when it starts.
    (folder / "sitecustomize.py").write_text(_HIDING.format(prefixes=prefixes))
    return {"PYTHONPATH": python_path(folder)}


@dataclass(frozen=True)
class Gpu:
    """A GPU that the stand-in driver shows."""

    name: str
    capability: str
    gib: int = 80


H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0")
RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", "8.9", 24)

# The functions of the CUDA Driver API and NVML that engines/gpu_probe.py calls.
_DRIVER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct gpu { char name[64]; int capability[2]; int gib; };
static struct gpu gpus[8];
static int count;

int cuInit(unsigned flags) {
    const char *answer = getenv("STAND_IN_INIT");
    if (answer && !strcmp(answer, "abort")) abort();
    if (answer && !strcmp(answer, "hang")) for (;;) sleep(1);
    if (answer && !strcmp(answer, "exit")) exit(3);
    char *list = strdup(getenv("STAND_IN_GPUS"));
    for (char *each = strtok(list, ";"); each; each = strtok(NULL, ";")) {
        struct gpu *gpu = &gpus[count++];
        sscanf(each, "%63[^|]|%d.%d|%d", gpu->name, &gpu->capability[0], &gpu->capability[1],
               &gpu->gib);
    }
    return answer ? atoi(answer) : 0;
}

int cuGetErrorName(int code, const char **name) {
    *name = code == 100 ? "CUDA_ERROR_NO_DEVICE"
          : code == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" : NULL;
    return *name ? 0 : 1;
}

int cuDriverGetVersion(int *version) { *version = 13020; return 0; }
int cuDeviceGetCount(int *number) { *number = count; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return index < count ? 0 : 101; }

int cuDeviceGetName(char *name, int size, int device) {
    snprintf(name, size, "%s", gpus[device].name);
    return 0;
}

int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    memset(uuid, 0xab, 16);
    uuid[15] = device;
    return 0;
}

int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    *bytes = (size_t)gpus[device].gib << 30;
    return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (attribute != 75 && attribute != 76) return 1;
    *value = gpus[device].capability[attribute - 75];
    return 0;
}

/* ONNX Runtime's CUDA provider does not load without it. */
int cuTensorMapEncodeTiled(void) { return 1; }

int nvmlInit_v2(void) { return getenv("STAND_IN_VERSION") ? 0 : 12; }

int nvmlSystemGetDriverVersion(char *version, unsigned size) {
    snprintf(version, size, "%s", getenv("STAND_IN_VERSION"));
    return 0;
}
"""
COMPILER = shutil.which("cc")


def compile_driver(folder: Path) -> None:
    """Writes the stand-in for the libraries of NVIDIA's driver; needs COMPILER."""
    source = folder / "driver.c"
    source.write_text(_DRIVER)
    libraries = [folder / "libcuda.so.1", folder / "libnvidia-ml.so.1"]
    command = [COMPILER, "-shared", "-fPIC", "-o", libraries[0], source]
    subprocess.run(command, check=True)
    shutil.copyfile(*libraries)


def with_driver(
    folder: Path, *gpus: Gpu, answer: str = "0", version: str = "580.159.04"
) -> dict[str, str]:
    """A machine with NVIDIA's driver.

    Args:
        folder: The folder given to `compile_driver`.
        gpus: The GPUs that CUDA opens.
        answer: What cuInit does: the code it returns, or "abort", "exit" or "hang".
        version: The version of the driver; "" if NVML does not start.
    """
    environment = {
        "LD_LIBRARY_PATH": str(folder),
        "STAND_IN_INIT": answer,
        "STAND_IN_GPUS": ";".join(f"{gpu.name}|{gpu.capability}|{gpu.gib}" for gpu in gpus),
    }
    return {**environment, "STAND_IN_VERSION": version} if version else environment


def with_tool(folder: Path, text: str) -> dict[str, str]:
    """A machine whose nvidia-smi prints `text`."""
    folder.mkdir(parents=True, exist_ok=True)
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{text}'\n")
    tool.chmod(0o755)
    return {"PATH": os.pathsep.join([str(folder), os.environ["PATH"]])}


if __name__ == "__main__":
    print(without(Path(sys.argv[1]), *sys.argv[2:])["PYTHONPATH"])  # noqa: T201 - its answer
