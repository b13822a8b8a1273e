package store

// Own returns the keys that m alone can tell of: their requests run here, or no other store has their records. It looks for those
// whose SHA-256 in hex is in wanted, and returns them by it. It is at place in a lease's Wire.
func Own(m *Memory, wanted map[string]string, place int) map[string]string {
	m.lock()
	running := make([]*Lease, len(m.watched))
	for i, r := range m.watched {
		running[i] = r.Lease
	}
	m.unlock()
	own := map[string]string{}
	for _, list := range append(finishedLists(m), running) {
		for first := 0; first < len(list); first += sweepChunk {
			ownSome(m, list, first, wanted, place, own)
		}
	}
	return own
}

// ownSome is Own for the chunk of list that begins at first.
func ownSome(m *Memory, list []*Lease, first int, wanted map[string]string, place int, own map[string]string) {
	end := first + sweepChunk
	if end > len(list) {
		end = len(list)
	}
	m.lock()
	defer m.unlock()
	for _, e := range list[first:end] {
		if e == nil || m.entries[e.Key] != e || e.elsewhere || len(e.Wire) < place+hashDigits {
			continue
		}
		hash := e.Wire[place : place+hashDigits]
		_, is := wanted[hash]
		if is {
			own[hash] = e.Key
		}
	}
}
