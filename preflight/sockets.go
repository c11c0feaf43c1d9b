package preflight

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// sock is a socket that the tree holds.
type sock struct {
	ino           uint64
	known         bool
	table         string // the file in net/ that lists it, or unix
	local, remote netip.AddrPort
	state         int
	rx            uint64
	unix          unixSock
	peerName      string // the name that the unix peer is bound to
	holders       []holder
}

// holder is a task and its descriptor.
type holder struct {
	t *task
	d *desc
}

// TCP states, include/net/tcp_states.h.
const (
	tcpEstablished = 1
	tcpClose       = 7
	tcpListen      = 10
)

func (s *sock) tcp() bool { return s.table == "tcp" || s.table == "tcp6" }

// checkSockets finds out what each of the tree's sockets is.
func (in *inspector) checkSockets() {
	if len(in.socks) == 0 {
		return
	}
	root := in.tasks[0]
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6", "netlink", "packet"} {
		b, err := readFile(filepath.Join(root.dir, "net", table))
		if err == nil {
			in.readTable(table, string(b))
		}
	}
	in.readUnix()
	in.probeSockets(mptcpInUse(filepath.Join(root.dir, "net/protocols")))
	in.checkTCP()
}

// readTable marks the sockets that a table of /proc/net lists.
func (in *inspector) readTable(table, text string) {
	first := true
	for line := range strings.Lines(text) {
		if first {
			first = false
			continue
		}
		f := strings.Fields(line)
		col := 9
		if table == "packet" {
			col = 8
		}
		if len(f) <= col {
			continue
		}
		ino, err := strconv.ParseUint(f[col], 10, 64)
		if err != nil {
			continue
		}
		s := in.socks[ino]
		if s == nil {
			continue
		}
		s.known, s.table = true, table
		if table == "netlink" || table == "packet" {
			continue
		}
		s.local, s.remote = parseAddr(f[1]), parseAddr(f[2])
		st, _ := strconv.ParseUint(f[3], 16, 8)
		s.state = int(st)
		if _, rx, ok := strings.Cut(f[4], ":"); ok {
			s.rx, _ = strconv.ParseUint(rx, 16, 64)
		}
	}
}

// parseAddr reads "0100007F:1F90": each 32-bit word of the address stands in host order.
func parseAddr(s string) netip.AddrPort {
	a, p, ok := strings.Cut(s, ":")
	raw, err := hex.DecodeString(a)
	port, err2 := strconv.ParseUint(p, 16, 16)
	if !ok || err != nil || err2 != nil || len(raw) != 4 && len(raw) != 16 {
		return netip.AddrPort{}
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr, uint16(port))
}

// mptcpInUse says whether the network namespace has any MPTCP socket. Their subflows are listed as plain TCP.
func mptcpInUse(path string) bool {
	b, err := readFile(path)
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 2 && strings.HasPrefix(f[0], "MPTCP") && f[2] != "0" {
			return true
		}
	}
	return false
}

// probeSockets asks the sockets themselves where no table can tell.
func (in *inspector) probeSockets(tcpToo bool) {
	pidfds := map[int]int{}
	defer func() {
		for _, fd := range pidfds {
			unix.Close(fd)
		}
	}()
	for _, s := range in.socks {
		if s.known && (!tcpToo || !s.tcp()) {
			continue
		}
		var err error
		for _, h := range s.holders {
			pidfd, ok := pidfds[h.t.PID]
			if !ok {
				if pidfd, err = unix.PidfdOpen(h.t.PID, 0); err != nil {
					continue
				}
				pidfds[h.t.PID] = pidfd
			}
			if err = in.probeSocket(pidfd, s, h); err == nil {
				break
			}
		}
		if h := s.holders[0]; err != nil && !gone(err) && !errors.Is(err, unix.EBADF) {
			in.add(Finding{"socket-unknown", Refuse, h.t.PID, fmt.Sprintf("descriptor %d of %s is a socket that cannot be looked at", h.d.fd, h.t.Comm), err.Error(), "run as root"})
		}
	}
}

// probeSocket copies the descriptor for a moment; only options are read.
func (in *inspector) probeSocket(pidfd int, s *sock, h holder) error {
	fd, err := unix.PidfdGetfd(pidfd, h.d.fd, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Ino != s.ino {
		return errors.New("the descriptor was used again")
	}
	domain, err1 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	proto, err2 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	typ, err3 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	s.known = true
	f := Finding{"", Refuse, h.t.PID, "", "CRIU cannot dump such sockets", "let it close the socket"}
	named := fmt.Sprintf("descriptor %d of %s is ", h.d.fd, h.t.Comm)
	switch domain {
	case unix.AF_UNIX, unix.AF_NETLINK, unix.AF_PACKET:
		return nil
	case unix.AF_INET, unix.AF_INET6:
		switch {
		case proto == unix.IPPROTO_MPTCP:
			f.Code, f.What, f.Do = "mptcp", named+"a Multipath TCP socket", "start it with GODEBUG=multipathtcp=0, or with sysctl net.mptcp.enabled=0 in its network namespace"
		case typ == unix.SOCK_RAW, proto == unix.IPPROTO_TCP, proto == unix.IPPROTO_UDP, proto == unix.IPPROTO_UDPLITE:
			return nil
		default:
			f.Code, f.What = "socket-protocol", named+fmt.Sprintf("an IP socket of protocol %d", proto)
		}
	case unix.AF_VSOCK:
		f.Code, f.What, f.Why = "vsock", named+"a VSOCK socket", "it is bound to this virtual machine"
	default:
		f.Code, f.What = "socket-family", named+fmt.Sprintf("a socket of address family %d", domain)
	}
	in.add(f)
	return nil
}

// checkTCP counts connections and lists the addresses that the tree needs.
func (in *inspector) checkTCP() {
	type pair struct{ local, remote netip.AddrPort }
	ends := map[pair]bool{}
	for _, s := range in.socks {
		if s.tcp() {
			ends[pair{unmap(s.local), unmap(s.remote)}] = true
		}
	}
	want, tree := &in.rep.Want, &in.rep.Tree
	for _, s := range in.socks {
		if !s.local.IsValid() {
			continue
		}
		l := Listen{s.table, s.local.Addr().String(), s.local.Port()}
		switch {
		case s.tcp() && s.state == tcpListen:
			if !slices.Contains(tree.Listens, l) {
				tree.Listens = append(tree.Listens, l)
			}
			if s.rx > 0 {
				in.add(Finding{
					"accept-queue", Warn, s.holders[0].t.PID, fmt.Sprintf("%d connections wait to be accepted on %s", s.rx, s.local),
					"they are not taken along, like established ones", "clients connect again",
				})
			}
		case s.tcp() && s.state != tcpClose:
			want.TCPClose = true
			want.TCPEstablished++
			if ends[pair{unmap(s.remote), unmap(s.local)}] {
				want.TCPInside++
			}
		case strings.HasPrefix(s.table, "udp") && s.local.Port() != 0 && !slices.Contains(tree.Listens, l):
			tree.Listens = append(tree.Listens, l)
		}
	}
	slices.SortFunc(tree.Listens, func(a, b Listen) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	if n := want.TCPEstablished; n > 0 {
		in.add(Finding{
			"tcp-established", Info, in.opt.PID, fmt.Sprintf("%d TCP connections, %d of them ends of connections within the tree", n, want.TCPInside),
			"they are closed at the target", "--tcp-close is set; clients connect again",
		})
	}
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
