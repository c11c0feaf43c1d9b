// Package migrate is one migration as a state machine on each side, and the commit protocol between them.
//
// # Both tables
//
//	state      source                                      target
//	prepare    preflight, record, dial, dump.Prepare       record, FUSE daemon with what /proc names, capsule with its root
//	frozen     dump.Freeze, images sent                    images, and what is different in the files, arrive in memory
//	restored   waits                                       CRIU holds the tree; "asked" is on disk; asks: MsgHeld
//	granted    the grant is on disk, MsgGrant              the grant is on disk, lets go: MsgResumed
//	drain      serves pages and files                      faults first, then the rest
//	drained    kills the frozen tree, keeps descriptors    all memory is here: MsgDrained
//	                                                       with --in-place: what goes to its own path is there (places.go)
//	           serves what stays here (residual.go)        the tree lives on local files but for that: MsgStays
//	detached   ends                                        the tree lives on local files, a bare init is its PID 1: MsgDetached
//	ended      nothing is served any more                  the tree has ended; nothing is left
//	aborted    the tree runs as before                     nothing is left
//
// # The commit
//
//	source                                   target
//	  │ ◄─────────────── MsgHeld ─────────────  asked (fsync): from now on only a grant or a refusal ends the wait
//	granted (fsync): never thaws by itself
//	  │ ─────────────── MsgGrant ────────────►
//	                                          granted (fsync), lets go
//	  │ ◄────────────── MsgResumed ───────────
//
// Before the source's "granted" is on disk every failure thaws the source and kills what the target holds; after it
// the source never thaws, but with the target's proof that the tree never ran. A lost MsgGrant is resolved by asking: the target, with "asked" on disk, keeps the tree held; the source
// dials again and says what its record says: grant (again; it is idempotent) or abort. A target that does not know the ID, or holds nothing,
// answers so, and the source keeps what it has: it never runs the tree by itself.
//
// A grant that could not be recorded whole is taken out of the record before the tree is thawed; while that can't be done the tree stays frozen.
// A grant on disk is withdrawn only if nobody has been told: when the tree turns out to have been thawed by somebody else. "aborted" on the
// target's disk says that what it held is dead. All orders of crashes and messages are walked by a model (commitmodel_test.go).
//
// # Standard streams
//
// A pipe, FIFO or socket that the tree shares with others as standard input, output or error gets another end on the target (stdiotarget.go),
// and the source keeps copies of the tree's own descriptors (stdio.go); a relay on each side (stdiorelay.go), on the source in the warden's process (relaylink.go), carries the bytes. Nothing is read
// there before the grant, so what the pipes hold at the freeze stays in them. What goes to a file or to journald of the target is given to the tree itself when it is
// detached (carriergive.go). Terminals are refused: their modes and signals would have to
// be carried, too.
//
// A carrier that is killed loses nothing, since no byte that it moves is ever known to it alone. The guardian has copies of these (stdiokept.go), and gives them to the next carrier:
//
//	tree ─ pipe ──splice──► memfd: its size says how much has been read          record: acknowledged, ended
//	tree ◄─ pipe ◄─splice── pipe: what is missing in it has been passed on ◄ write   record: what was before it, how much it was
//
// Each arrow is one system call, which a SIGKILL does not tear, and between any two of them pipe, file and record say how far each stream has come (streambytes.go, streamrecord.go;
// TestCarrierDies kills it at each of these points). What is sent to the peer twice that drops.
//
// # Who goes on after a kill -9
//
//	process       before the grant                     from the grant (source), the question for it (target) on
//	source        keeper thaws, warden tells target    warden starts another (sourceresume.go)
//	keeper        nobody, the tree goes on             is not needed any more
//	warden        source starts another                spare one takes its place (wardens.go); standard streams end
//	spare warden  warden starts another                warden starts another
//	source and    keeper thaws; the target's           a person, by `lazymig recover` (recover.go): files are found by what is written
//	warden        connection ends, so it gives up      down of them (sourcejournal.go)
//	agent         the migration is given up            whoever starts agents; it takes all up (targetresume.go)
//	starter       agent ends with it                   agent ends with it
//	handler       agent starts another                 agent starts another: it has nothing to lose
//	FUSE daemon   the migration is given up            its keeper starts another (fusekeeper.go)
//	FUSE keeper   agent starts daemon and keeper       agent starts daemon and keeper
//	carrier       the migration is given up            agent starts another (carrierlink.go); nobody if the streams go to a file or to journald:
//	                                                   what it had read is lost, so the tree waits at their ends
//	guardian      the migration is given up            nobody: the capsule ends with it
//
// On the source the warden (warden.go) stands beside the process that carries the migration out, and holds what would be lost with that. The process that it starts
// takes the frozen tree up again, gets the rest from the warden, and dials; the target does not tell it from a source whose connection was cut.
// On the target the next agent finds guardian, FUSE daemon and carrier by sockets beside the record, starts another handler, and goes on where the record and the guardian say.
// A record's lock sees to it that one process at a time drives a migration; tasks are known by PID, start and boot.
//
// A source may take a tree back after the grant only if the target proves that it never ran: its "aborted" is on disk after what it held is dead, and it says aborted
// to nobody before. The source's own "aborted" is on disk before it thaws. It does so by itself (Source.takeBack) when the target had to give up: its agent was told to end, or
// guardian or CRIU died over the tree that they held. What is left to a person is in recover.go.
//
// # Trust boundary
//
// The peer has a certificate of the same CA; it goes on with a migration only if it knows the token that came with MsgPrepare. JSON messages are bounded (maxMessage) and checked (message.go); images
// are bounded in number and size, named by a fixed pattern, and validated by package images before CRIU reads them.
//
// # Lock order
//
// Source and Target are each driven by one goroutine; what others may ask (status) is under their mu, which is a leaf. A relay's is
// taken before those of its streams.
package migrate
