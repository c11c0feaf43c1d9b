// Package remotefs serves the files of a frozen process tree, and is the client for that.
//
// The protocol is FUSE's, operation by operation, so that what the target's kernel asks reaches the source's
// kernel with nothing in between that would have an opinion: a node is an O_PATH descriptor that was reached one
// name at a time, with a count of lookups; a handle is an open descriptor. Nodes belong to the Server, not to a
// connection, so they survive a reconnect.
//
// # A lost connection
//
// A Client outlives its connections (client_link.go): it keeps each request until it has the answer, and sends those without one again on the
// next connection. Whether the server has done a request whose answer was lost can't be told, and a second append, rename or create
// would be wrong, as would a second lookup that is forgotten once. So all that is not a mere read is done once (session.go): the server
// writes it down by its number before it begins, keeps the answer until the client acknowledges it, and says it again to a repeat. Requests acknowledge what
// was answered before them, and go out in the order of their numbers; so a request that came late over an old connection could
// be taken for a new one after its answer is forgotten: the server begins nothing on a connection that has been replaced.
//
// A Client that dies is followed by another of the same session, which asks again what nobody has been told the answer of, under the same numbers:
// client_succeed.go. What has no number is lost with its client: forgets that were on their way and entries of directories that were
// fetched ahead leave counts too high, so nodes stay longer, never shorter.
//
// # Order
//
// Requests are worked at side by side and may overtake each other. What is opened by MsgFileOpenAs is the exception: requests that come later find the handle, and wait
// until it is open (ops_open.go). And what is about a node is done after the MsgFileStreams for it that were read before (chain.go), on whatever connection; a MsgFileStream that waits for that takes no place from others.
//
// # A killed server
//
// What a server knows of its client (nodes, handles, answers) dies with its process, unless it has a Journal (journal.go): another process then follows it with a
// Standby, holds copies of all descriptors, and NewServerFrom goes on there or in a third process. An answer is in the journal before the client gets it; what is
// not there the client asks for again. A change that can't be done twice writes down beforehand how things stood (witness), so that the successor can
// tell whether it had been done. TestServerKilled kills the server at each message of each operation.
//
// If everybody who holds descriptors is killed at once, a JournalFile says which files they were of. LoadJournal opens them anew: by the names that they may have,
// below the same root, and the frozen tree's own descriptors. What is found must be the same file by number and time of birth, else it is not served (TestAllKilled).
//
// # What is told ahead
//
// MsgFileSeed (seed.go) is answered with all that a restore will ask for, first while the tree runs, and once more, held up until then, at the freeze.
//
// # Trust boundary
//
// The server runs as root and believes nothing: each length is checked, a name is one component, never "." or
// "..", a node is never left upwards, symbolic and magic links are never followed, a device, FIFO or socket is
// never opened, and the insides of /proc-like file systems do not exist. Permissions are the target's kernel's
// affair (default_permissions); what creates or could keep a set-user-ID bit runs with the caller's fsuid, fsgid
// and umask and the tree's supplementary groups, on a thread of its own (cred.go).
// Before Grant nothing that changes the source is done: EROFS.
//
// # Locks
//
// Server: quiet (shared by each request at work), then one of holdMu, table.mu, dirState.mu, session.mu, each without the others; below session.mu chain.mu, below table.mu and
// session.mu journal.mu, which is held while the other process takes a message. Client: attachMu or sendMu, then mu. No lock is held in a system call that may wait for a disk,
// except journal.mu (a write to the page cache), dirState.mu (one reader of a directory handle at a time) and seeding.mu (one answer at a time), before table.mu, and but Client.sendMu none while the network may.
// File locks are not served: the frozen tree still holds its own, a forwarded one would wait for ever.
package remotefs
