// Package urgent keeps what a stopped thread waits for ahead of everything else on a busy CPU.
//
// While memory drains, TLS and copies keep all CPUs busy at both ends. A page that a thread has faulted on passes five
// threads: the guardian's event loop, the handler, the source's server, the handler's reader, the guardian's loop again. If
// each of them has to wait for its turn the fault takes milliseconds instead of the 100 µs that it costs. Two things help:
//
//   - Thread gives a goroutine a kernel thread of its own with a real-time priority. It must wait in the kernel (epoll_wait,
//     or a blocking read: wire.Conn.WaitInThread, fdpass.NewInThread), not in the runtime's poller: there a thread of
//     ordinary priority would have to wake it. Only threads whose work is bounded by the faults, or short, are like this.
//   - Share makes all threads of a process give up the CPU after 0.1 ms when another wants it, so that a thread that has
//     got its page runs soon.
//
// Both do what the kernel allows and are of no consequence for what is right.
package urgent
