package redisclient

import (
	"errors"
	"fmt"
	"hash/crc32"
	"log"
	"math/bits"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	slotCount    = 16384
	maxRedirects = 5

	// refreshPause is for how long the map of slots is not fetched again: many commands may find at once that it is old.
	refreshPause = 100 * time.Millisecond
)

// asking stands before a command for a node that is just taking a slot over.
var asking = "*1\r\n" + bulk("ASKING")

var errNoOwner = errors.New("no node of the cluster has the slot, as far as is known")

// Cluster sends commands to the nodes of a Redis Cluster. Each master has a Client of its own, so that one that is lost
// holds up nobody else's commands. The map of slots is fetched from any node when it is first needed, and again when it
// turns out to be old.
type Cluster struct {
	opts  Options // of every node, but for its address
	seeds []string
	front *Client // stands for the cluster in messages; nothing is sent over it

	refreshing sync.Mutex // held while the map is fetched; guards refreshed
	refreshed  time.Time

	mu     sync.RWMutex       // guards everything below
	slots  []*Client          // master of each slot; nil: not known
	nodes  map[string]*Client // masters by address
	closed bool
}

// NewCluster returns a cluster whose opts.Address has some of its nodes, with commas between them.
func NewCluster(opts Options) *Cluster {
	return NewClusterSharing(opts, NewBacklog())
}

// NewClusterSharing is to NewCluster what NewSharing is to New.
func NewClusterSharing(opts Options, b *Backlog) *Cluster {
	c := &Cluster{opts: opts, seeds: strings.Split(opts.Address, ","), slots: make([]*Client, slotCount), nodes: map[string]*Client{}}
	opts.MinIdleConns = 0
	c.front = build(opts, b)
	c.front.cluster = c
	join(c.front)
	return c
}

// Idle is Client.Idle of all nodes.
func (c *Cluster) Idle() bool { return c.front.Idle() }

// Close closes the connections to all nodes, as Client.Close does.
func (c *Cluster) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.front.Close()
	for _, node := range c.nodes {
		node.Close()
	}
}

// sendToSlot carries out cmd, which is about key, where the slot of key is.
func sendToSlot(c *Cluster, key string, cmd *command) {
	slot := Slot(key)
	node, err := c.owner(slot)
	if err != nil {
		cmd.err = err
		return
	}
	cmd.asking = false
	sendToReplicas(node, cmd)
	for attempt := 0; cmd.err != nil && attempt < maxRedirects; attempt++ {
		next, ask := c.next(slot, node, cmd.err)
		if next == nil {
			return
		}
		node = next
		cmd.asking = ask
		sendToReplicas(node, cmd)
	}
}

// do sends one command about key. An error reply is returned as an error.
func (c *Cluster) do(key string, command Command) (interface{}, error) {
	slot := Slot(key)
	node, err := c.owner(slot)
	if err != nil {
		return nil, err
	}
	reply, err := node.do(command)
	for attempt := 0; err != nil && attempt < maxRedirects; attempt++ {
		next, ask := c.next(slot, node, err)
		if next == nil {
			return nil, err
		}
		node = next
		if ask {
			reply, err = node.do(Command{Name: "ASKING"}, command)
		} else {
			reply, err = node.do(command)
		}
	}
	return reply, err
}

// isRedirection tells whether an error reply says that a key is at another node.
func isRedirection(reply error) bool {
	return strings.HasPrefix(reply.Error(), "MOVED ") || strings.HasPrefix(reply.Error(), "ASK ")
}

// next returns who is to be asked about slot instead of node, which failed with err, and whether it takes the slot over just
// now; nil if that is nobody. A command that node may have carried out may be sent to its successor: if the record arrived
// there, it is known again by its owner.
func (c *Cluster) next(slot int, node *Client, err error) (*Client, bool) {
	switch {
	case isRedirection(err):
		fields := strings.Fields(err.Error())
		if len(fields) != 3 {
			return nil, false
		}
		address := fields[2]
		colon := strings.LastIndexByte(address, ':')
		if colon < 0 {
			return nil, false
		}
		host := hostOf(address)
		if host == "" || host == "?" { // the node does not know by which name clients call it
			host = hostOf(node.opts.Address)
		}
		address = net.JoinHostPort(host, address[colon+1:]) // Redis writes IPv6 without brackets
		if fields[0] == "ASK" {
			return c.nodeAt(address), true
		}
		return c.moved(slot, address), false
	case errors.Is(err, errUnreachable) || errors.Is(err, ErrDown) || strings.HasPrefix(err.Error(), "CLUSTERDOWN "):
		if errors.Is(err, ErrDown) { // known before: nobody waits again
			go c.refreshLater(node.opts.Address)
		} else {
			_ = c.refresh("", node.opts.Address) // then the cause is err
		}
		c.mu.RLock()
		defer c.mu.RUnlock()
		if c.slots[slot] != node {
			return c.slots[slot], false
		}
	}
	return nil, false
}

// owner returns the master of slot.
func (c *Cluster) owner(slot int) (*Client, error) {
	c.mu.RLock()
	node := c.slots[slot]
	c.mu.RUnlock()
	if node != nil {
		return node, nil
	}
	err := c.refresh("", "")
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.slots[slot] == nil && err == nil {
		err = errNoOwner
	}
	if c.slots[slot] != nil {
		err = nil
	}
	return c.slots[slot], err
}

// moved returns the node at address, which has got slot. It knows best what else has changed.
func (c *Cluster) moved(slot int, address string) *Client {
	_ = c.refresh(address, "") // the slot is known without it
	node := c.nodeAt(address)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slots[slot] = node
	return node
}

// masters returns the clients of all masters.
func (c *Cluster) masters() []*Client {
	_, _ = c.owner(0) // fetches the map if there is none
	c.mu.RLock()
	defer c.mu.RUnlock()
	var all []*Client
	for _, node := range c.nodes {
		all = append(all, node)
	}
	return all
}

// nodeAt returns the client of the node at address.
func (c *Cluster) nodeAt(address string) *Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodeLocked(address)
}

func (c *Cluster) nodeLocked(address string) *Client {
	node := c.nodes[address]
	if node == nil {
		opts := c.opts
		opts.Address = address
		node = build(opts, c.front.plight.backlog)
		node.plight = c.front.plight
		node.node = true
		node.cluster = c
		node.odd = true
		if c.closed {
			node.Close()
		}
		c.nodes[address] = node
	}
	return node
}

// refresh fetches the map of slots: from the node at first, if that is not empty, else from any but the one at not. It does
// nothing if the map is fresh. While one call fetches it, others do not wait if there is an old one.
func (c *Cluster) refresh(first, not string) error {
	addresses := c.candidates(first, not)
	c.mu.RLock()
	known := len(c.nodes) > 0
	c.mu.RUnlock()
	if !known {
		c.refreshing.Lock()
	} else if !c.refreshing.TryLock() {
		return nil
	}
	defer c.refreshing.Unlock()
	begin := time.Now()
	if begin.Sub(c.refreshed) < refreshPause {
		return nil
	}
	var err error
	for _, address := range addresses {
		var ranges []slotRange
		ranges, err = c.fetch(address)
		if err == nil {
			c.install(ranges)
			break
		}
		if time.Since(begin) > c.opts.ReadTimeout+c.opts.DialTimeout {
			break
		}
	}
	c.refreshed = time.Now()
	return err
}

// refreshLater is refresh beside the requests.
func (c *Cluster) refreshLater(not string) {
	defer func() {
		if p := recover(); p != nil {
			log.Printf("level=error msg=\"looking for the nodes of a cluster failed\" cause=%q", p)
		}
	}()
	_ = c.refresh("", not) // whoever asks next tries again
}

// candidates are the addresses where the map may be had.
func (c *Cluster) candidates(first, not string) []string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var addresses []string
	if first != "" {
		addresses = append(addresses, first)
	}
	for address := range c.nodes {
		if address != first && address != not {
			addresses = append(addresses, address)
		}
	}
	for _, seed := range c.seeds {
		_, there := c.nodes[seed]
		if !there && seed != first && seed != not {
			addresses = append(addresses, seed)
		}
	}
	return addresses
}

// slotRange are slots from first to last, and the address of their master.
type slotRange struct {
	first, last int64
	address     string
}

// fetch asks the node at address, over a connection of its own, for the map.
func (c *Cluster) fetch(address string) ([]slotRange, error) {
	opts := c.opts
	conn, err := connect(&opts, address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	reply, err := conn.Do("CLUSTER", "SLOTS")
	if err != nil {
		return nil, fmt.Errorf("CLUSTER SLOTS of %s: %w", address, err)
	}
	var ranges []slotRange
	for _, element := range elements(reply) {
		r, ok := rangeIn(elements(element), hostOf(address))
		if !ok {
			return nil, unexpected("CLUSTER SLOTS", reply)
		}
		ranges = append(ranges, r)
	}
	return ranges, nil
}

// rangeIn reads first slot, last slot, and the master, whose host is that of the node which was asked if it is not named.
func rangeIn(fields []interface{}, host string) (slotRange, bool) {
	if len(fields) < 3 {
		return slotRange{}, false
	}
	master := elements(fields[2])
	if len(master) < 2 {
		return slotRange{}, false
	}
	first, last, port := integer(fields[0]), integer(fields[1]), integer(master[1])
	if master[0] != nil && text(master[0]) != "" && text(master[0]) != "?" {
		host = text(master[0])
	}
	r := slotRange{first: first, last: last, address: net.JoinHostPort(host, strconv.FormatInt(port, 10))}
	return r, first >= 0 && first <= last && last < slotCount && port > 0
}

// ownKey returns key with an ending for which node has its slot; key itself if it has none, or if a part in braces decides.
func ownKey(node *Client, key string) string {
	c := node.cluster
	has := false
	c.mu.RLock()
	for _, master := range c.slots {
		if master == node {
			has = true
			break
		}
	}
	c.mu.RUnlock()
	if !has || Slot(key) == Slot(key+":0") {
		return key
	}
	for i := 0; i < 8*slotCount; i++ {
		own := key + ":" + strconv.Itoa(i)
		slot := Slot(own)
		c.mu.RLock()
		found := c.slots[slot] == node
		c.mu.RUnlock()
		if found {
			return own
		}
	}
	return key
}

// integer is a reply as a number; -1 for anything else.
func integer(reply interface{}) int64 {
	if reply == nil { // Yaegi panics at the assertion
		return -1
	}
	n, ok := reply.(int64)
	if !ok {
		return -1
	}
	return n
}

// hostOf returns the host of an address, an IPv6 one without its brackets.
func hostOf(address string) string {
	return strings.Trim(address[:strings.LastIndexByte(address, ':')], "[]")
}

// install makes ranges the map. Nodes that are masters no more are given up.
func (c *Cluster) install(ranges []slotRange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	slots := make([]*Client, slotCount)
	nodes := map[string]*Client{}
	for _, r := range ranges {
		node := c.nodeLocked(r.address)
		nodes[r.address] = node
		part := slots[r.first : r.last+1]
		part[0] = node
		for n := 1; n < len(part); n *= 2 { // twice as many at each turn, and none by an interpreted loop
			copy(part[n:], part[:n])
		}
	}
	for address, node := range c.nodes {
		if nodes[address] == nil {
			go closeNode(node)
		}
	}
	c.slots = slots
	c.nodes = nodes
}

// closeNode closes the client of a node that is lost. It may have to wait for commands that run.
func closeNode(node *Client) {
	defer recovered("closing the connections to a node")
	node.Close()
}

// crc16 is the polynomial of Redis Cluster's CRC-16, x^16+x^12+x^5+1, with its lowest bit first, as hash/crc32 has it:
// that is native code, where a loop over bytes would be interpreted. The same register serves, since the polynomial
// leaves its upper half empty. Redis takes the bits of each byte from the highest on, hash/crc32 from the lowest: so
// bytes are turned round before, and the sum after.
var (
	crc16    = crc32.MakeTable(0x8408)
	reversed = newReversed()
)

func newReversed() *strings.Replacer {
	pairs := make([]string, 0, 2*256)
	for b := 0; b < 256; b++ {
		pairs = append(pairs, string([]byte{byte(b)}), string([]byte{bits.Reverse8(uint8(b))}))
	}
	return strings.NewReplacer(pairs...)
}

// Slot returns the slot of a key, 0 to 16383: that of the part between the first { and the next }, if there is something between them.
func Slot(key string) int {
	open := strings.IndexByte(key, '{')
	if open >= 0 {
		length := strings.IndexByte(key[open+1:], '}')
		if length > 0 {
			key = key[open+1 : open+1+length]
		}
	}
	sum := ^crc32.Update(^uint32(0), crc16, []byte(reversed.Replace(key)))
	return int(bits.Reverse32(sum)>>16) % slotCount
}
