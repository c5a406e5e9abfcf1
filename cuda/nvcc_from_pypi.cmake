# nvcc as NVIDIA's packages on PyPI bring it (pyproject.toml has them as build requirements): where it is, and two things
# that are not where CMake looks for them.
set(find_toolkit "
import pathlib, nvidia
print(next(p for p in (pathlib.Path(path) / 'cu13' for path in nvidia.__path__) if (p / 'bin' / 'nvcc').exists()))
")
execute_process(COMMAND ${Python_EXECUTABLE} -c "${find_toolkit}" OUTPUT_VARIABLE toolkit
  OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
set(CMAKE_CUDA_COMPILER ${toolkit}/bin/nvcc)
set(ENV{LIBRARY_PATH} ${toolkit}/lib)  # for CMake's check of the compiler, which links a program
set(CUDA_CUDART ${toolkit}/lib/libcudart.so.13 CACHE FILEPATH "The CUDA runtime, by which CMake knows the toolkit")
