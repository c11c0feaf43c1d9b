package images

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"google.golang.org/protobuf/proto"
)

// ArmTimers repairs periodic timerfds that had expired and not been read when they were dumped. The kernel arms such a
// timer again when it is read (fs/timerfd.c), and says until then that nothing is left of its time; CRIU 4.2 restores that as a
// disarmed timer, which never fires again. One nanosecond instead of none makes it expire at once, as it had.
func ArmTimers(dir string) error {
	path := filepath.Join(dir, "files.img")
	im, err := readImage(path, magicFiles)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	changed := false
	for i, b := range im.entries {
		var e fdinfo.FileEntry
		if err := proto.Unmarshal(b, &e); err != nil {
			return fmt.Errorf("read image %s: %w: %w", path, ErrFormat, err)
		}
		t := e.GetTfd()
		if t == nil || t.GetVsec() != 0 || t.GetVnsec() != 0 || t.GetIsec() == 0 && t.GetInsec() == 0 || t.GetTicks() == 0 {
			continue
		}
		t.Vnsec = proto.Uint64(1)
		if im.entries[i], err = proto.Marshal(&e); err != nil {
			return fmt.Errorf("change image %s: %w", path, err)
		}
		changed = true
	}
	if !changed {
		return nil
	}
	return im.write(path)
}
