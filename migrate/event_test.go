package migrate

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
)

// TestEventsDocument holds docs/events.md to the fields.
func TestEventsDocument(t *testing.T) {
	doc, err := os.ReadFile("../docs/events.md")
	if err != nil {
		t.Fatal(err)
	}
	for f := range reflect.TypeFor[Event]().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !strings.Contains(string(doc), "`"+name+"`") {
			t.Errorf("docs/events.md does not tell of %s", name)
		}
	}
}

// TestDone: it has all its figures, whatever they are, and comes back as it was.
func TestDone(t *testing.T) {
	e := Event{Event: "done", PID: 7, TargetPID: 8, DowntimeMS: 1.5, BytesSent: 9, StopMS: 2}
	b := encode(e)
	var fields map[string]any
	var back Event
	if err := json.Unmarshal(b, &fields); err != nil {
		t.Fatal(err)
	}
	for _, name := range doneFields {
		if _, ok := fields[name]; !ok {
			t.Errorf("%s is missing in %s", name, b)
		}
	}
	if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(back, e) {
		t.Errorf("%s is read as %+v, %v", b, back, err)
	}
	if b := string(encode(Event{Event: "frozen"})); strings.Contains(b, "faults") {
		t.Errorf("frozen: %s", b)
	}
}

// doneFields are those that the event has always.
var doneFields = []string{
	"event", "time", "id", "pid", "target_pid", "downtime_ms", "dump_ms", "transfer_ms", "restore_ms", "drain_ms", "memory_bytes", "bytes_sent",
	"faults", "fault_p50_us", "fault_p99_us", "files_forwarded",
}
