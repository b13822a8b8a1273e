package store

import (
	"context"
	"strings"
	"testing"
	"time"
)

// TestClaimsNeverFall has the claims counted at every moment of the first one, of one that ClaimKey grants by itself, and of one that
// comes when nothing has run for a while.
func TestClaimsNeverFall(t *testing.T) {
	m := NewMemory(1 << 20)
	defer m.Close()
	unlock := m.unlock
	total, taking := int64(0), false
	m.unlock = func() {
		unlock()
		if taking {
			return
		}
		taking = true
		news := m.TakeClaims()
		if news < 0 {
			t.Errorf("of %d claims, %d were not granted after all", total, -news)
		}
		total += news
		taking = false
	}
	k := NewKeys(m, nil, Terms{TTL: time.Minute, Lease: time.Minute})
	m.tick, m.sweeping = time.Hour, true // no timer ticks meanwhile
	for i, pause := range []bool{false, false, true} {
		if pause {
			m.watch()
		}
		r := &Run{Lease: &Lease{Key: strings.Repeat("k", i+1), Fingerprint: strings.Repeat("f", FingerprintSize)}, Client: context.Background()}
		if held := ClaimKey(k, r); held != nil {
			t.Fatalf("claim %d: %+v", i, held)
		}
		ClaimKey(k, &Run{Lease: &Lease{Key: r.Key}}) // which is not granted
		if total += m.TakeClaims(); total != int64(i+1) {
			t.Errorf("%d claims are counted, want %d", total, i+1)
		}
		KeepAnswer(k, r.Lease, DoneHead+r.Fingerprint+StatusLines[200]+"\r\n")
	}
}
