package store

// OnlyHere returns the keys that m alone can tell of: their requests run here, or no other store has their records. It looks for
// those whose SHA-256 in hex is in wanted, and returns them by it. It begins at hashOffset in a lease's Wire.
func OnlyHere(m *Memory, wanted map[string]string, hashOffset int) map[string]string {
	m.lock()
	running := make([]*Lease, len(m.watched))
	for i, r := range m.watched {
		running[i] = r.Lease
	}
	m.unlock()
	found := map[string]string{}
	for _, list := range append(finishedLists(m), running) {
		for first := 0; first < len(list); first += sweepChunk {
			onlyHereSome(m, list, first, wanted, hashOffset, found)
		}
	}
	return found
}

// onlyHereSome is OnlyHere for the chunk of list that begins at first.
func onlyHereSome(m *Memory, list []*Lease, first int, wanted map[string]string, hashOffset int, found map[string]string) {
	end := first + sweepChunk
	if end > len(list) {
		end = len(list)
	}
	m.lock()
	defer m.unlock()
	for _, e := range list[first:end] {
		if e == nil || m.entries[e.Key] != e || e.elsewhere || len(e.Wire) < hashOffset+hashDigits {
			continue
		}
		hash := e.Wire[hashOffset : hashOffset+hashDigits]
		_, is := wanted[hash]
		if is {
			found[hash] = e.Key
		}
	}
}
