package budget

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const rate = 1 << 20

// TestRate: pushed memory goes at the rate, however many push.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(rate)
		began := time.Now()
		done := make(chan struct{})
		for range 4 {
			go func() {
				for range 25 {
					b.Memory(nil, rate/10)
				}
				done <- struct{}{}
			}()
		}
		for range 4 {
			<-done
		}
		if d := time.Since(began); d < 9800*time.Millisecond || d > 10*time.Second {
			t.Errorf("10 MB at 1 MB/s took %v", d)
		}
	})
}

// TestOrder: what somebody waits for does not wait and delays the rest; files come after memory.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(rate)
		began := time.Now()
		b.Spend(rate)
		var memory, files time.Duration
		done := make(chan struct{})
		go func() {
			b.Files(nil, rate)
			files = time.Since(began)
			close(done)
		}()
		synctest.Wait()
		if time.Since(began) != 0 {
			t.Error("Spend waited")
		}
		b.Memory(nil, rate)
		memory = time.Since(began)
		<-done
		if memory != time.Second-burst || files != 2*time.Second-burst {
			t.Errorf("memory after %v, files after %v", memory, files)
		}
	})
}

// TestSaved: an idle line saves up no more than burst.
func TestSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(rate)
		time.Sleep(time.Hour) //nolint:forbidigo // the bubble's time
		began := time.Now()
		for range 2 {
			b.Files(nil, rate)
		}
		if d := time.Since(began); d != time.Second-burst {
			t.Errorf("took %v", d)
		}
	})
}

func TestDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(1)
		b.Spend(1000)
		began := time.Now()
		done := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { b.Memory(done, 1) })
		wg.Go(func() { b.Files(done, 1) })
		synctest.Wait()
		close(done)
		wg.Wait()
		New(0).Memory(nil, 1<<30)
		if d := time.Since(began); d != 0 {
			t.Errorf("waited %v", d)
		}
	})
}
