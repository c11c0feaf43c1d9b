package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/lazymig/lazymig/keys"
	"github.com/lazymig/lazymig/lab"
)

// `lazymig-bench files` measures how fast files are that are still at the source: the root of host A is mounted on B, by lazyfs over TLS with the
// source's journal in a process of its own, as in a migration, and by sshfs through a real sshd, and the same small programs run on both, on A
// itself, and on files that have come (files_here.go). Each load gets a fresh mount, so that B's kernel knows nothing yet, and runs twice. What A has is in its page cache.

const (
	filesArg = "files"

	filesPort = "7080" // remotefs
	sshPort   = "7022"
	farPort   = "7081" // of the line to either of them

	mountPoint = "/mnt/a"
)

// place is a mount of A's files, or A itself.
type place struct {
	host *lab.Host
	dir  string
	end  func() error

	ready  func() error // after a first, unmeasured run of the load: what it uses is here then; nil: there is none
	daemon *service
}

// filesBench is what the measurements share.
type filesBench struct {
	*bench
	lab *lab.Lab
	ssh string // directory with keys

	uses string // below loadDir: what the load that is measured uses
}

const (
	forwarded    = "lazyfs"
	localHere    = "local"
	detachedHere = "detached"
)

// fileSystems in the order of the table; those of the network are measured at each round trip.
var fileSystems = []struct {
	name string
	far  bool
	open func(*filesBench, context.Context, string) (*place, error)
}{
	{"native", false, (*filesBench).native},
	{"sshfs", true, (*filesBench).sshfs},
	{forwarded, true, (*filesBench).lazyfs},
	{localHere, true, (*filesBench).localFiles},
	{detachedHere, false, (*filesBench).detachedFiles},
}

func filesMain(ctx context.Context, args []string) (err error) {
	set := flag.NewFlagSet(filesArg, flag.ContinueOnError)
	rtts := set.String("rtts", "0,1ms,20ms", "round `trips` of the line")
	which := set.String("systems", "native,sshfs,lazyfs,local,detached", "what is measured")
	only := set.String("loads", "", "`names` of loads; empty: all")
	runs := set.Int("runs", 1, "fresh mounts of each kind; medians are printed")
	out := set.String("out", "docs/benchmarks.md", "report into `FILE` below the project; empty: none")
	if err := set.Parse(args); err != nil {
		return err
	}
	root, err := projectRoot()
	if err != nil {
		return err
	}
	var trips []time.Duration
	for s := range strings.SplitSeq(*rtts, ",") {
		d, err := time.ParseDuration(s)
		if err != nil {
			return err
		}
		trips = append(trips, d)
	}
	if err := os.MkdirAll(filepath.Join(root, "bin"), 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Join(root, "bin"), ".bench-")
	if err != nil {
		return fmt.Errorf("make a directory for the run: %w", err)
	}
	defer os.RemoveAll(dir)
	b := &filesBench{bench: &bench{self: filepath.Join(dir, "bench"), keys: filepath.Join(dir, "keys")}, ssh: filepath.Join(dir, "ssh")}
	if err := errors.Join(copySelf(b.self), keys.Init(b.keys), keys.Host(b.keys, "10.77.0.1", "10.77.0.2"), os.Mkdir(b.ssh, 0o700)); err != nil {
		return err
	}
	disk, err := os.MkdirTemp("/var/tmp", "lab-") // short, and on a disk: fsync shall cost what it costs
	if err != nil {
		return fmt.Errorf("make a directory for the hosts: %w", err)
	}
	defer os.RemoveAll(disk)
	if b.lab, err = lab.Up(ctx, lab.Options{Self: b.self, Dir: disk, Disk: true, Share: append(lab.ProjectShare(root), filepath.Join(root, "bin"))}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.lab.Down()) }()
	if _, err := b.load(ctx, &place{host: b.lab.A}, loadArg, "prepare"); err != nil {
		return err
	}
	systems := strings.Split(*which, ",")
	if has(systems, "sshfs") {
		stopSSH, err := b.startSSH(ctx)
		if err != nil {
			return err
		}
		defer stopSSH()
	}

	r := &filesReport{trips: trips, runs: *runs}
	r.machine.look()
	for range *runs {
		for i, rtt := range trips {
			for _, fs := range fileSystems {
				if !has(systems, fs.name) || !fs.far && i > 0 {
					continue
				}
				if err := b.measureAll(ctx, r, fs.name, rtt, strings.Split(*only, ","), fs.open); err != nil {
					return fmt.Errorf("%s at %v: %w", fs.name, rtt, err)
				}
			}
		}
	}
	r.machine.lookAgain()
	if err := r.same(); err != nil {
		return err
	}
	text := r.markdown()
	fmt.Println("\n" + text)
	if *out != "" {
		if err := errors.Join(writeSection(filepath.Join(root, *out), filesTitle, text), r.writeCSV(filepath.Join(root, filepath.Dir(*out), "files.csv"))); err != nil {
			return err
		}
	}
	return r.lastLine(os.Stdout)
}

// measureAll runs all loads on one file system.
func (b *filesBench) measureAll(ctx context.Context, r *filesReport, name string, rtt time.Duration, only []string,
	open func(*filesBench, context.Context, string) (*place, error),
) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	far := func(port string) (string, func(), error) {
		if rtt == 0 {
			return b.lab.A.Addr + ":" + port, func() {}, nil
		}
		at := b.lab.B.Addr + ":" + farPort
		end, err := b.longLine(ctx, b.lab.B, at, b.lab.A.Addr+":"+port, rtt)
		return at, end, err
	}
	port := filesPort
	if name == "sshfs" {
		port = sshPort
	}
	addr, endLine, err := far(port)
	if err != nil {
		return err
	}
	defer endLine()
	for _, l := range fileLoads {
		if len(only) > 0 && only[0] != "" && !slices.Contains(only, l.name) || name == detachedHere && l.chroots {
			continue
		}
		b.uses = l.uses
		p, err := open(b, ctx, addr)
		if err != nil {
			return err
		}
		if p.ready != nil {
			if _, err := b.load(ctx, p, loadArg, l.name, p.dir); err != nil {
				return errors.Join(fmt.Errorf("load %s: %w", l.name, err), p.end())
			}
			if err := p.ready(); err != nil {
				return errors.Join(err, p.end())
			}
			if name == localHere {
				if err := uncached(ctx, p.host, b, p.dir); err != nil {
					return errors.Join(err, p.end())
				}
			}
		}
		for _, again := range []bool{false, true} {
			got, err := b.load(ctx, p, loadArg, l.name, p.dir)
			if err != nil {
				return errors.Join(fmt.Errorf("load %s: %w", l.name, err), p.end())
			}
			fmt.Printf("%-7s %5v  %-16s again %-5v  %8.3f s\n", name, rtt, l.name, again, got.Seconds)
			r.add(measured{name, rtt, l.name, again}, got)
		}
		if err := p.end(); err != nil {
			return err
		}
	}
	return nil
}

// load runs this program in a host as the one that uses files.
func (b *filesBench) load(ctx context.Context, p *place, args ...string) (*loadResult, error) {
	cmd := p.host.Command(ctx, b.self, args...)
	var out, why strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &why
	if err := cmd.Run(); err != nil {
		return nil, said(strings.Join(args, " "), err, []byte(why.String()))
	}
	var got loadResult
	if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
		return nil, fmt.Errorf("result %q: %w", out.String(), err)
	}
	return &got, nil
}

func (b *filesBench) native(context.Context, string) (*place, error) {
	return &place{host: b.lab.A, dir: "/", end: func() error { return nil }}, nil
}

// service is a process in a host that says when it is ready and ends with its standard input.
type service struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out io.Reader
	log strings.Builder
}

func (b *filesBench) serve(ctx context.Context, h *lab.Host, word string, args ...string) (*service, error) {
	s := &service{cmd: h.Command(ctx, b.self, args...)}
	s.cmd.Stderr = &s.log
	in, err := s.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	s.in = in
	out, err := s.cmd.StdoutPipe()
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", args[0], err)
	}
	s.out = out
	if err := awaitWord(out, word); err != nil {
		return nil, said(args[0], errors.Join(err, s.end()), []byte(s.log.String()))
	}
	return s, nil
}

func (s *service) end() error {
	_ = s.in.Close()
	defer func() { fmt.Print(s.log.String()) }()
	if err := s.cmd.Wait(); err != nil {
		return said("end of "+s.cmd.Args[len(s.cmd.Args)-1], err, []byte(s.log.String()))
	}
	return nil
}

func (b *filesBench) lazyfs(ctx context.Context, addr string) (*place, error) {
	return b.lazyfsWith(ctx, addr)
}

// used waits until A's files are at the mount point on B; end is what is left to be done when they are no longer.
func (b *filesBench) used(ctx context.Context, end func() error) (*place, error) {
	h := b.lab.B
	p := &place{host: h, dir: mountPoint, end: func() error {
		out, err := h.Command(ctx, "umount", "-l", mountPoint).CombinedOutput()
		if err != nil {
			return said("unmount", err, out)
		}
		return end()
	}}
	if out, err := h.Command(ctx, b.self, awaitArg, mountPoint).CombinedOutput(); err != nil {
		return nil, said("wait for the mount", errors.Join(err, p.end()), out)
	}
	return p, nil
}

// startSSH starts an sshd on A.
func (b *filesBench) startSSH(ctx context.Context) (stop func(), err error) {
	for _, name := range []string{"host", "user"} {
		cmd := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(b.ssh, name))
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, said("make ssh keys", err, out)
		}
	}
	conf := fmt.Sprintf("Port %s\nHostKey %s\nAuthorizedKeysFile %s\nPermitRootLogin prohibit-password\nStrictModes no\nUsePAM no\nPidFile none\n"+
		"Subsystem sftp internal-sftp\n", sshPort, filepath.Join(b.ssh, "host"), filepath.Join(b.ssh, "user.pub"))
	path := filepath.Join(b.ssh, "sshd_config")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	cmd := b.lab.A.Command(ctx, "/bin/sh", "-c", `mkdir -p /run/sshd && exec /usr/sbin/sshd -D -e -f "$1"`, "sh", path)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start sshd: %w", err)
	}
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // ended by a signal
	}
	if out, err := b.lab.A.Command(ctx, b.self, dialArg, b.lab.A.Addr+":"+sshPort).CombinedOutput(); err != nil {
		stop()
		return nil, said("start sshd", err, out)
	}
	return stop, nil
}

func (b *filesBench) sshfs(ctx context.Context, addr string) (*place, error) {
	host, port, _ := strings.Cut(addr, ":")
	h := b.lab.B
	mount := []string{"-f", "root@" + host + ":/", mountPoint, "-p", port, "-o", strings.Join([]string{
		"IdentityFile=" + filepath.Join(b.ssh, "user"), "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR",
		"kernel_cache", "compression=no", "Ciphers=aes128-gcm@openssh.com", "allow_other", "default_permissions",
	}, ",")}
	cmd := h.Command(ctx, "sshfs", mount...)
	var log strings.Builder
	cmd.Stderr = &log
	if out, err := h.Command(ctx, "mkdir", "-p", mountPoint).CombinedOutput(); err != nil {
		return nil, said("make mount point", err, out)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start sshfs: %w", err)
	}
	p, err := b.used(ctx, cmd.Wait)
	if err != nil {
		return nil, said("sshfs", err, []byte(log.String()))
	}
	return p, nil
}
