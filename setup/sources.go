package setup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// source is one Debian archive of the machine's apt sources.
type source struct {
	uri      string
	signedBy string // key ring, may be empty
}

// options is the bracket part of a one-line source.
func (s source) options() string {
	if s.signedBy == "" {
		return ""
	}
	return "[signed-by=" + s.signedBy + "] "
}

// errNoMirror says that no line of the apt sources is Debian's own archive.
var errNoMirror = errors.New("no Debian mirror in the apt sources")

// machineSource reads sources.list and sources.list.d in dir and returns the
// main Debian archive. A vendor's list may stand beside it, and the security
// archive has no suites: neither is taken.
func machineSource(dir string) (source, error) {
	files := []string{filepath.Join(dir, "sources.list")}
	for _, pattern := range []string{"*.list", "*.sources"} {
		more, err := filepath.Glob(filepath.Join(dir, "sources.list.d", pattern))
		if err != nil {
			return source{}, fmt.Errorf("list apt sources: %w", err)
		}
		files = append(files, more...)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return source{}, fmt.Errorf("read apt sources: %w", err)
		}
		parse := parseList
		if strings.HasSuffix(f, ".sources") {
			parse = parseDeb822
		}
		if s, ok := parse(string(b)); ok {
			return s, nil
		}
	}
	return source{}, errNoMirror
}

// isDebian tells Debian's main archive: a path that ends in /debian, with the
// component main, for a suite that is not security.
func isDebian(uri string, suites, components []string) bool {
	u := strings.TrimRight(uri, "/")
	if !strings.HasSuffix(u, "/debian") || strings.HasPrefix(u, "cdrom:") {
		return false
	}
	main := false
	for _, c := range components {
		main = main || c == "main"
	}
	for _, s := range suites {
		if strings.Contains(s, "security") {
			return false
		}
	}
	return main
}

// parseList reads the one-line format: deb [options] uri suite component…
func parseList(text string) (source, bool) {
	for l := range strings.Lines(text) {
		l, _, _ = strings.Cut(l, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(l), "deb ")
		if !ok {
			continue
		}
		rest = strings.TrimSpace(rest)
		var s source
		if strings.HasPrefix(rest, "[") {
			opts, after, ok := strings.Cut(rest[1:], "]")
			if !ok {
				continue
			}
			for o := range strings.FieldsSeq(opts) {
				if v, ok := strings.CutPrefix(o, "signed-by="); ok {
					s.signedBy = v
				}
			}
			rest = after
		}
		f := strings.Fields(rest)
		if len(f) < 3 || !isDebian(f[0], f[1:2], f[2:]) {
			continue
		}
		s.uri = f[0]
		return s, true
	}
	return source{}, false
}

// parseDeb822 reads the paragraphs of a .sources file.
func parseDeb822(text string) (source, bool) {
	for para := range strings.SplitSeq(text, "\n\n") {
		field := map[string]string{}
		for l := range strings.Lines(para) {
			if strings.HasPrefix(l, "#") || strings.HasPrefix(l, " ") {
				continue // a comment, or a key ring given in full
			}
			k, v, ok := strings.Cut(strings.TrimSpace(l), ":")
			if ok {
				field[strings.ToLower(k)] = strings.TrimSpace(v)
			}
		}
		if field["enabled"] == "no" || !strings.Contains(" "+field["types"]+" ", " deb ") {
			continue
		}
		for uri := range strings.FieldsSeq(field["uris"]) {
			if isDebian(uri, strings.Fields(field["suites"]), strings.Fields(field["components"])) {
				s := source{uri: uri}
				if strings.HasPrefix(field["signed-by"], "/") {
					s.signedBy = field["signed-by"]
				}
				return s, true
			}
		}
	}
	return source{}, false
}
