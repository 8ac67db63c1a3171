/* A CUDA driver without a GPU, for tests of what drives one.

   Device memory is host memory.  Work given to a stream is put on a list and done when somebody
   waits, so that whoever does not wait sees old memory, as on hardware.  Kernels are a callback's
   business.  A stream that records puts its work on the list of a graph instead.

   `order` is held while work is done, which may wait for Python; `guard` never for long. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define API __attribute__((visibility("default")))
#define ARGUMENTS 1024
#define MOST 4096
typedef unsigned long long Address;
typedef void (*Kernel)(const char *name, unsigned blocks, unsigned threads, const void *arguments,
                       size_t bytes);
enum { OK, INVALID = 1, NO_MEMORY = 2, NO_DEVICE = 100, BAD_CONTEXT = 201, FAULT = 700,
       CAPTURING = 900, STALE = 46 };

typedef struct {
  int kernel, owned;
  void *to;
  const void *from;
  size_t bytes, argument_bytes;
  unsigned blocks, threads;
  char name[128], arguments[ARGUMENTS];
} Work;
typedef struct List { Work *work; int count, room; } List;
typedef struct Stream { List *list, *recording; struct Stream *next; } Stream;

static Kernel on_kernel;
static int devices = 1, failed, fail_at = -1, major = 9, minor = 0, version = 13000;
static size_t memory = (size_t)1 << 32, used;
static struct { Address at; size_t bytes; int pinned; } known[MOST];
static Stream first_stream, *streams;
static __thread int depth;
static long graphs, kernels, waits;
static char context;
static pthread_mutex_t order, guard = PTHREAD_MUTEX_INITIALIZER;
__attribute__((constructor)) static void begin(void) {
  pthread_mutexattr_t again;
  pthread_mutexattr_init(&again);
  pthread_mutexattr_settype(&again, PTHREAD_MUTEX_RECURSIVE);
  pthread_mutex_init(&order, &again);
}
static void lock(void) { pthread_mutex_lock(&guard); }
static int unlock(int code) { return pthread_mutex_unlock(&guard), code; }

/* ---- what tests ask for ---- */
API void fake_on_kernel(Kernel k) { on_kernel = k; }
API void fake_devices(int n) { devices = n; }
API void fake_memory(size_t n) { memory = n; }
API void fake_capability(int a, int b) { major = a, minor = b; }
API void fake_version(int v) { version = v; }
API void fake_fail_kernel(int n) { fail_at = n; } /* the n-th kernel from now faults */
API long fake_graphs(void) { return graphs; }
API long fake_kernels(void) { return kernels; }
API long fake_waits(void) { return waits; }
API size_t fake_used(void) { return used; }
API int fake_depth(void) { return depth; }
API size_t fake_extent(Address p) {
  for (int i = 0; i < MOST; i++)
    if (known[i].bytes && p >= known[i].at && p < known[i].at + known[i].bytes)
      return known[i].at + known[i].bytes - p;
  return 0;
}

/* ---- memory ---- */
static int pinned(const void *p) {
  for (int i = 0; i < MOST; i++)
    if (known[i].pinned && (Address)p >= known[i].at && (Address)p < known[i].at + known[i].bytes)
      return 1;
  return 0;
}
static int get(void **p, size_t n, int is_pinned) {
  if (failed) return failed;
  if (!depth) return BAD_CONTEXT;
  lock();
  if (!is_pinned && used + n > memory) return unlock(NO_MEMORY);
  for (int i = 0; i < MOST; i++)
    if (!known[i].bytes) {
      if (posix_memalign(p, 4096, n + 512)) return unlock(NO_MEMORY);
      memset(*p, 0xFF, n);
      known[i].at = (Address)*p, known[i].bytes = n ? n : 1, known[i].pinned = is_pinned;
      if (!is_pinned) used += n;
      return unlock(OK);
    }
  return unlock(NO_MEMORY);
}
static int give_back(void *p) {
  lock();
  for (int i = 0; i < MOST; i++)
    if (known[i].bytes && known[i].at == (Address)p) {
      if (!known[i].pinned) used -= known[i].bytes;
      known[i].bytes = 0, known[i].pinned = 0;
      free(p);
      return unlock(OK);
    }
  return unlock(INVALID);
}
API int cuMemAlloc_v2(Address *p, size_t n) { return get((void **)p, n, 0); }
API int cuMemFree_v2(Address p) { return give_back((void *)p); }
API int cuMemHostAlloc(void **p, size_t n, unsigned f) { (void)f; return get(p, n, 1); }
API int cuMemFreeHost(void *p) { return give_back(p); }
API int cuMemGetInfo_v2(size_t *a, size_t *b) { *a = memory - used, *b = memory; return failed; }

/* ---- work ---- */
static void add(List *l, const Work *w) {
  if (l->count == l->room) l->work = realloc(l->work, (l->room = 2 * l->room + 16) * sizeof *w);
  l->work[l->count++] = *w;
}
static void perform(Work *w) {
  if (failed) return;
  if (w->kernel == 2) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    *(double *)w->to = 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
  } else if (w->kernel) {
    kernels++;
    if (fail_at >= 0 && fail_at-- == 0) failed = FAULT;
    else if (on_kernel)
      on_kernel(w->name, w->blocks, w->threads, w->arguments, w->argument_bytes);
  } else
    memmove(w->to, w->from, w->bytes);
}
static int finish(Stream *s) {
  pthread_mutex_lock(&order);
  lock();
  List *l = s->list;
  s->list = 0;
  unlock(OK);
  for (int i = 0; l && i < l->count; i++) {
    perform(&l->work[i]);
    if (l->work[i].owned) free((void *)l->work[i].from);
  }
  if (l) free(l->work), free(l);
  pthread_mutex_unlock(&order);
  return failed;
}
static int everything(void) {
  finish(&first_stream);
  for (Stream *s = streams; s; s = s->next) finish(s);
  return failed;
}
static int submit(Stream *s, Work *w) {
  if (failed) return failed;
  if (!depth) return BAD_CONTEXT;
  s = s ? s : &first_stream;
  if (s->recording) { add(s->recording, w); return OK; }
  lock();
  if (!s->list) s->list = calloc(1, sizeof(List));
  add(s->list, w);
  return unlock(OK);
}
static int copy(void *to, const void *from, size_t n, Stream *s) {
  Work w = {.to = to, .from = from, .bytes = n};
  return submit(s, &w);
}
API int cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t n, Stream *s) {
  if (pinned(from)) return copy((void *)to, from, n, s);
  if (s && s->recording) return CAPTURING;
  Work w = {.to = (void *)to, .from = memcpy(malloc(n), from, n), .bytes = n, .owned = 1};
  return submit(s, &w);
}
API int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t n, Stream *s) {
  if (s && s->recording && !pinned(to)) return CAPTURING;
  int code = copy(to, (void *)from, n, s);
  return code || pinned(to) ? code : finish(s ? s : &first_stream);
}
API int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t n, Stream *s) {
  return copy((void *)to, (void *)from, n, s);
}
API int cuLaunchKernel(const char *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                       unsigned by, unsigned bz, unsigned shared, Stream *s, void **args,
                       void **extra) {
  (void)args, (void)shared;
  if (!gx || gy != 1 || gz != 1 || by != 1 || bz != 1 || bx > 1024) return INVALID;
  Work w = {.kernel = 1, .blocks = gx, .threads = bx};
  strncpy(w.name, f, sizeof w.name - 1);
  for (int i = 0; extra && extra[i]; i += 2) {
    if (extra[i] == (void *)2) w.argument_bytes = *(size_t *)extra[i + 1];
  }
  if (w.argument_bytes > ARGUMENTS) return INVALID;
  for (int i = 0; extra && extra[i]; i += 2)
    if (extra[i] == (void *)1) memcpy(w.arguments, extra[i + 1], w.argument_bytes);
  return submit(s, &w);
}

/* ---- streams and graphs ---- */
API int cuStreamCreate(Stream **s, unsigned f) {
  (void)f;
  if (!depth) return BAD_CONTEXT;
  *s = calloc(1, sizeof **s);
  (*s)->next = streams, streams = *s;
  return failed;
}
API int cuStreamDestroy_v2(Stream *s) {
  for (Stream **p = &streams; *p; p = &(*p)->next)
    if (*p == s) { *p = s->next; break; }
  free(s);
  return OK;
}
API int cuStreamSynchronize(Stream *s) {
  s = (size_t)s > 2 ? s : &first_stream; /* 1 and 2 are names of default streams */
  waits++;
  return s->recording ? CAPTURING : finish(s);
}
API int cuStreamQuery(Stream *s) { return finish(s ? s : &first_stream); }
API int cuStreamBeginCapture_v2(Stream *s, int mode) {
  if (mode != 1 || s->recording) return INVALID;
  s->recording = calloc(1, sizeof(List));
  return OK;
}
API int cuStreamEndCapture(Stream *s, List **g) {
  *g = s->recording, s->recording = 0;
  return OK;
}
API int cuGraphInstantiateWithFlags(List **e, List *g, unsigned long long f) {
  (void)f;
  *e = calloc(1, sizeof(List));
  for (int i = 0; i < g->count; i++) add(*e, &g->work[i]);
  return OK;
}
API int cuGraphDestroy(List *g) { free(g->work), free(g); return OK; }
API int cuGraphExecDestroy(List *g) { free(g->work), free(g); return OK; }
API int cuGraphLaunch(List *g, Stream *s) {
  int code = OK;
  graphs++;
  for (int i = 0; i < g->count && !code; i++) code = submit(s, &g->work[i]);
  return code;
}

/* ---- the device and its context ---- */
API int cuInit(unsigned f) { (void)f; return devices ? OK : NO_DEVICE; }
API int cuDriverGetVersion(int *v) { *v = version; return OK; }
API int cuDeviceGetCount(int *n) { *n = devices; return OK; }
API int cuDeviceGet(int *d, int i) { *d = i; return i < devices ? OK : INVALID; }
API int cuDeviceGetName(char *to, int n, int d) { snprintf(to, n, "fake GPU %d", d); return OK; }
API int cuDeviceTotalMem_v2(size_t *n, int d) { (void)d; *n = memory; return OK; }
API int cuDeviceComputeCapability(int *a, int *b, int d) {
  (void)d;
  *a = major, *b = minor;
  return OK;
}
API int cuDeviceGetAttribute(int *v, int what, int d) {
  (void)d;
  *v = what == 75 ? major : what == 76 ? minor : 64;
  return OK;
}
API int cuDevicePrimaryCtxRetain(void **c, int d) { (void)d; *c = &context; return OK; }
API int cuDevicePrimaryCtxRelease_v2(int d) { (void)d; return OK; }
API int cuCtxPushCurrent_v2(void *c) { (void)c; depth++; return OK; }
API int cuCtxPopCurrent_v2(void **c) {
  if (!depth) return BAD_CONTEXT;
  if (c) *c = &context;
  depth--;
  return OK;
}
API int cuCtxGetDevice(int *d) { *d = 0; return depth ? OK : BAD_CONTEXT; }
API int cuCtxSynchronize(void) { return everything(); }
API int cuCtxDetach(void *c) { (void)c; return OK; }
API int cuGetErrorString(int code, const char **text) {
  *text = code == FAULT ? "an illegal memory access was encountered"
          : code == NO_MEMORY ? "out of memory" : code == NO_DEVICE ? "no CUDA-capable device"
          : code == BAD_CONTEXT ? "invalid device context" : "some error";
  return OK;
}

/* ---- events ---- */
API int cuEventCreate(double **e, unsigned f) {
  (void)f;
  *e = calloc(1, sizeof **e);
  return depth ? OK : BAD_CONTEXT;
}
API int cuEventDestroy_v2(double *e) { free(e); return OK; }
API int cuEventRecord(double *e, Stream *s) {
  Work w = {.kernel = 2, .to = e};
  return submit(s, &w);
}
API int cuEventElapsedTime_v2(float *ms, double *a, double *b) {
  if (!*a || !*b) return 600; /* not over yet */
  *ms = (float)(*b - *a);
  return OK;
}
API int cuEventElapsedTime(float *ms, double *a, double *b) {
  return cuEventElapsedTime_v2(ms, a, b);
}

/* ---- modules ---- */
API int cuModuleLoadDataEx(char **m, const char *text, unsigned n, void *o, void **v) {
  (void)n, (void)o, (void)v;
  *m = strdup(text);
  return strstr(text, ".version") && strstr(text, ".target sm_") ? OK : 218;
}
API int cuModuleLoadData(char **m, const char *text) { return cuModuleLoadDataEx(m, text, 0, 0, 0); }
API int cuModuleUnload(char *m) { free(m); return OK; }
API int cuModuleGetFunction(char **f, char *m, const char *name) {
  char entry[300];
  snprintf(entry, sizeof entry, ".entry %s(", name);
  *f = strdup(name);
  return strstr(m, entry) ? OK : 500;
}
API int cuFuncGetAttribute(int *v, int a, void *f) { (void)a, (void)f; *v = 0; return OK; }
API int cuFuncSetAttribute(void *f, int a, int v) { (void)f, (void)a, (void)v; return OK; }

/* ---- what PyCUDA names and nothing here uses ---- */
#define UNUSED(name) API int name(void) { return 801; }
UNUSED(cuArray3DCreate_v2) UNUSED(cuArray3DGetDescriptor_v2) UNUSED(cuArrayCreate_v2)
UNUSED(cuArrayDestroy) UNUSED(cuArrayGetDescriptor_v2) UNUSED(cuCtxAttach) UNUSED(cuCtxCreate_v2)
UNUSED(cuCtxCreate_v3) UNUSED(cuCtxCreate_v4) UNUSED(cuCtxDestroy_v2)
UNUSED(cuCtxDisablePeerAccess) UNUSED(cuCtxEnablePeerAccess) UNUSED(cuCtxGetApiVersion)
UNUSED(cuCtxGetCacheConfig) UNUSED(cuCtxGetLimit) UNUSED(cuCtxGetSharedMemConfig)
UNUSED(cuCtxSetCacheConfig) UNUSED(cuCtxSetLimit) UNUSED(cuCtxSetSharedMemConfig)
UNUSED(cuDeviceCanAccessPeer) UNUSED(cuDeviceGetByPCIBusId) UNUSED(cuDeviceGetPCIBusId)
UNUSED(cuEventQuery) UNUSED(cuEventSynchronize) UNUSED(cuFuncSetBlockShape)
UNUSED(cuFuncSetCacheConfig) UNUSED(cuFuncSetSharedSize) UNUSED(cuFuncSetSharedMemConfig)
UNUSED(cuIpcCloseMemHandle) UNUSED(cuIpcGetEventHandle) UNUSED(cuIpcGetMemHandle)
UNUSED(cuIpcOpenEventHandle) UNUSED(cuIpcOpenMemHandle) UNUSED(cuIpcOpenMemHandle_v2)
UNUSED(cuLaunch) UNUSED(cuLaunchGrid) UNUSED(cuLaunchGridAsync) UNUSED(cuLinkAddData_v2)
UNUSED(cuLinkAddFile_v2) UNUSED(cuLinkComplete) UNUSED(cuLinkCreate_v2) UNUSED(cuLinkDestroy)
UNUSED(cuMemAllocManaged) UNUSED(cuMemAllocPitch_v2) UNUSED(cuMemGetAddressRange_v2)
UNUSED(cuMemHostGetDevicePointer_v2) UNUSED(cuMemHostGetFlags) UNUSED(cuMemHostRegister_v2)
UNUSED(cuMemHostUnregister) UNUSED(cuMemcpy2DAsync_v2) UNUSED(cuMemcpy2DUnaligned_v2)
UNUSED(cuMemcpy2D_v2) UNUSED(cuMemcpy3DAsync_v2) UNUSED(cuMemcpy3DPeer)
UNUSED(cuMemcpy3DPeerAsync) UNUSED(cuMemcpy3D_v2) UNUSED(cuMemcpyAtoA_v2) UNUSED(cuMemcpyAtoD_v2)
UNUSED(cuMemcpyAtoH_v2) UNUSED(cuMemcpyDtoA_v2) UNUSED(cuMemcpyDtoD_v2) UNUSED(cuMemcpyDtoH_v2)
UNUSED(cuMemcpyHtoA_v2) UNUSED(cuMemcpyHtoD_v2) UNUSED(cuMemcpyPeer) UNUSED(cuMemcpyPeerAsync)
UNUSED(cuMemsetD16Async) UNUSED(cuMemsetD16_v2) UNUSED(cuMemsetD2D16Async)
UNUSED(cuMemsetD2D16_v2) UNUSED(cuMemsetD2D32Async) UNUSED(cuMemsetD2D32_v2)
UNUSED(cuMemsetD2D8Async) UNUSED(cuMemsetD2D8_v2) UNUSED(cuMemsetD32Async) UNUSED(cuMemsetD32_v2)
UNUSED(cuMemsetD8Async) UNUSED(cuMemsetD8_v2) UNUSED(cuModuleGetGlobal_v2)
UNUSED(cuModuleGetSurfRef) UNUSED(cuModuleGetTexRef) UNUSED(cuModuleLoad) UNUSED(cuParamSetSize)
UNUSED(cuParamSetTexRef) UNUSED(cuParamSetf) UNUSED(cuParamSeti) UNUSED(cuParamSetv)
UNUSED(cuProfilerInitialize) UNUSED(cuProfilerStart) UNUSED(cuProfilerStop)
UNUSED(cuStreamAttachMemAsync) UNUSED(cuStreamWaitEvent) UNUSED(cuSurfRefGetArray)
UNUSED(cuSurfRefSetArray) UNUSED(cuTexRefCreate) UNUSED(cuTexRefDestroy)
UNUSED(cuTexRefGetAddressMode) UNUSED(cuTexRefGetAddress_v2) UNUSED(cuTexRefGetArray)
UNUSED(cuTexRefGetFilterMode) UNUSED(cuTexRefGetFlags) UNUSED(cuTexRefGetFormat)
UNUSED(cuTexRefSetAddress2D_v3) UNUSED(cuTexRefSetAddressMode) UNUSED(cuTexRefSetAddress_v2)
UNUSED(cuTexRefSetArray) UNUSED(cuTexRefSetFilterMode) UNUSED(cuTexRefSetFlags)
UNUSED(cuTexRefSetFormat)
