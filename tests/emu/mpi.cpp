// Stands in front of Open MPI: LOAM_FAKE_MPI_STALL=<name> has that function wait for ever in rank 1. All else is Open MPI's.
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void* real(const char* name) {
  const char *wanted = getenv("LOAM_FAKE_MPI_STALL"), *rank = getenv("OMPI_COMM_WORLD_RANK");
  while (wanted && rank && !strcmp(wanted, name) && !strcmp(rank, "1")) sleep(1);
  return dlsym(RTLD_NEXT, name);
}

extern "C" int MPI_Init_thread(int* argc, char*** argv, int required, int* provided) {
  return ((int (*)(int*, char***, int, int*))real("MPI_Init_thread"))(argc, argv, required, provided);
}
extern "C" int MPI_Finalize() { return ((int (*)())real("MPI_Finalize"))(); }
