package keys

import (
	"crypto/tls"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func made(t *testing.T, names ...string) *Keys {
	t.Helper()
	dir := t.TempDir()
	if err := Init(dir); err != nil {
		t.Fatal(err)
	}
	if err := Host(dir, names...); err != nil {
		t.Fatal(err)
	}
	k, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// handshake runs both sides over a pipe and yields what each says.
func handshake(t *testing.T, client, server *Keys, name string, allow ...string) (error, error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	cfg, err := client.Client(name)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		c := tls.Server(b, server.Server(allow...))
		err := c.Handshake()
		if err == nil {
			_, err = c.Write([]byte("x"))
		}
		b.Close()
		got <- err
	}()
	c := tls.Client(a, cfg)
	cerr := c.Handshake()
	if cerr == nil {
		_, cerr = io.ReadFull(c, make([]byte, 1))
	}
	a.Close()
	return cerr, <-got
}

type meeting struct {
	what           string
	client, server *Keys
	name           string
	allow          []string
	want           string // "" = works
}

func (c meeting) run(t *testing.T) {
	cerr, serr := handshake(t, c.client, c.server, c.name, c.allow...)
	if c.want == "" {
		if cerr != nil || serr != nil {
			t.Fatalf("client: %v, server: %v", cerr, serr)
		}
		return
	}
	if both := errors.Join(cerr, serr); both == nil || !strings.Contains(both.Error(), c.want) {
		t.Fatalf("client: %v, server: %v; want %q", cerr, serr, c.want)
	}
}

func TestHandshake(t *testing.T) {
	k := made(t, "alpha", "10.0.0.1")
	foreign := made(t, "alpha")
	for _, c := range []meeting{
		{"own", k, k, "alpha", nil, ""},
		{"own by address", k, k, "10.0.0.1", nil, ""},
		{"allowed", k, k, "alpha", []string{"10.0.0.1"}, ""},
		{"not allowed", k, k, "alpha", []string{"beta"}, "not among those allowed"},
		{"other name", k, k, "beta", nil, "valid for alpha"},
		{"foreign client", foreign, k, "alpha", nil, "unknown authority"},
	} {
		t.Run(c.what, c.run)
	}
}

func TestInitKeepsCA(t *testing.T) {
	dir := t.TempDir()
	if err := Init(dir); err != nil {
		t.Fatal(err)
	}
	if err := Init(dir); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("second Init: %v", err)
	}
	if err := Host(dir); err == nil {
		t.Fatal("a certificate without a name was made")
	}
	st, err := os.Stat(filepath.Join(dir, caKey))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("key: %v, %v", st, err)
	}
	if _, err := Load(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("Load without host certificate: %v", err)
	}
}

// TestSince: who had a good certificate when it began goes on with it, and nobody else does.
func TestSince(t *testing.T) {
	k := made(t, "alpha", "beta")
	begun := time.Now()
	foreign := made(t, "alpha")
	if err := HostUntil(k.dir, begun.Add(-time.Hour), "alpha", "beta"); err != nil {
		t.Fatal(err)
	}
	if err := HostUntil(foreign.dir, begun.Add(-time.Hour), "alpha"); err != nil {
		t.Fatal(err)
	}
	early, late := begun.Add(-2*time.Hour), begun
	for _, c := range []meeting{
		{"valid then", k.Since(early), k.Since(early), "alpha", []string{"beta"}, ""},
		{"ended before", k.Since(late), k.Since(early), "alpha", nil, "expired"},
		{"ended before, client", k.Since(early), k.Since(late), "alpha", nil, "expired"},
		{"no time", k, k.Since(early), "alpha", nil, "expired"},
		{"no time, client", k.Since(early), k, "alpha", nil, "expired"},
		{"other name", k.Since(early), k.Since(early), "gamma", nil, "valid for alpha"},
		{"not allowed", k.Since(early), k.Since(early), "alpha", []string{"gamma"}, "not among those allowed"},
		{"foreign client", foreign.Since(early), k.Since(early), "alpha", nil, "unknown authority"},
		{"foreign server", k.Since(early), foreign.Since(early), "alpha", nil, "unknown authority"},
	} {
		t.Run(c.what, c.run)
	}
}
