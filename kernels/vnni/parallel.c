// Threads for one piece of work, which are gone when it is done: none spins where others have something to do.
#include <pthread.h>
#include <stdatomic.h>

#include "vnni.h"

typedef struct {
    void (*work)(void *, int);
    void *job;
    int units;
    atomic_int next;
} Queue;

static void *worker(void *shared) {
    Queue *queue = shared;
    for (int unit; (unit = atomic_fetch_add(&queue->next, 1)) < queue->units;) queue->work(queue->job, unit);
    return 0;
}

void parallel(int threads, int units, void (*work)(void *job, int unit), void *job) {
    enum { MOST = 64 };
    pthread_t others[MOST];
    Queue queue = {.work = work, .job = job, .units = units};
    int started = 0, wanted = (threads < units ? threads : units) - 1;
    while (started < wanted && started < MOST && !pthread_create(&others[started], 0, worker, &queue)) started++;
    worker(&queue);
    while (started) pthread_join(others[--started], 0);
}
