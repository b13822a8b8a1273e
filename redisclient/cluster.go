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
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"
)

const (
	slotCount    = 16384
	maxRedirects = 5

	// refreshPause is the shortest time between two fetches of the map of slots: many commands may find at once that it is old.
	refreshPause = 100 * time.Millisecond

	// refreshWait is how long a request that got no reply waits for the map, which may name another node.
	refreshWait = 250 * time.Millisecond
)

// asking is sent before a command for a node that is taking over a slot.
var asking = "*1\r\n" + bulk("ASKING")

var errUncovered = errors.New("no node of the cluster has the slot, as far as is known")

// Cluster sends commands to the nodes of a Redis Cluster. There is one Client for each master, so that the loss of one does
// not delay commands to others. The map of slots is fetched from any node when it is first needed, and again when it turns
// out to be old.
type Cluster struct {
	opts  Options // of every node, but for its address
	seeds []string
	front *Client // stands for the whole cluster in health, backlog and log; nothing is sent over it

	usesShards atomic.Bool // CLUSTER SLOTS is forbidden

	refreshing sync.Mutex // held while the map is fetched; guards everything down to mu
	refreshed  time.Time
	failed     error // why the last fetch brought no map

	mu       sync.RWMutex       // guards everything below
	slots    []*Client          // master of each slot; nil: not known
	complete bool               // each slot has a master
	nodes    map[string]*Client // masters by address
	closed   bool
}

func newCluster(opts Options, front *Client) *Cluster {
	return &Cluster{opts: opts, seeds: strings.Split(opts.Address, ","), front: front, slots: make([]*Client, slotCount), nodes: map[string]*Client{}}
}

// isFront reports whether c is the front of a cluster.
func isFront(c *Client) bool { return c.cluster != nil && !c.node }

// closeNodes closes the connections to all nodes.
func closeNodes(c *Cluster) {
	c.mu.Lock()
	c.closed = true
	var nodes []*Client
	for _, node := range c.nodes {
		nodes = append(nodes, node)
	}
	c.mu.Unlock()
	for _, node := range nodes { // not under the lock: Close may wait for a connection whose user needs it
		node.Close()
	}
}

// sendToSlot sends cmd to the node that has the slot of key, and follows redirections.
func sendToSlot(c *Cluster, key string, cmd *command) {
	slot := Slot(key)
	node, err := c.masterOf(slot)
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
		if errors.Is(cmd.err, errUnreachable) {
			cmd.resent = true
		}
		node = next
		cmd.asking = ask
		sendToReplicas(node, cmd)
	}
}

// do sends one command about key. An error reply is returned as an error.
func (c *Cluster) do(key string, command Command) (interface{}, error) {
	slot := Slot(key)
	node, err := c.masterOf(slot)
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

// next returns the node to ask about slot after node failed with err, nil if there is none, and whether that node needs
// ASKING. A command that node may have carried out can be sent to its successor: if the successor has the record, the script
// recognizes it by its owner.
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
		done := make(chan struct{}, 2)
		go c.refreshLater(node.opts.Address, done)
		if !errors.Is(err, ErrDown) { // otherwise it was known before, and no request waits for it again
			go sendAfter(refreshWait, done)
			<-done
		}
		master := c.known(slot)
		if master != node {
			return master, false
		}
	}
	return nil, false
}

// masterOf returns the master of slot. If none can be found, that trips the breaker of c.front, and the map is fetched in the
// background from then on.
func (c *Cluster) masterOf(slot int) (*Client, error) {
	node := c.known(slot)
	if node != nil {
		return node, nil
	}
	if c.front.state() != down {
		err := c.refresh("", "")
		node = c.known(slot)
		if node != nil {
			return node, nil
		}
		if err == nil {
			err = errUncovered
		}
		trip(c.front, down, err)
	}
	return nil, notSent(c.front)
}

// known returns the master of slot; nil if it is not known.
func (c *Cluster) known(slot int) *Client {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.slots[slot]
}

// probeMap fetches the map, and returns the state of the cluster as a whole: fine if each slot has a master.
func probeMap(c *Cluster) (int32, error) {
	err := c.refresh("", "")
	c.mu.RLock()
	defer c.mu.RUnlock()
	switch {
	case c.complete:
		return fine, nil
	case err == nil:
		err = errUncovered
	}
	return down, err
}

// moved records that the node at address has slot now, and returns it. That node is asked for the map first, because it knows
// best what else has changed.
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
	_, _ = c.masterOf(0) // fetches the map if there is none
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
	return c.addNode(address)
}

// addNode returns the client of the node at address, which it adds if need be. The caller holds the lock mu.
func (c *Cluster) addNode(address string) *Client {
	node := c.nodes[address]
	if node == nil {
		opts := c.opts
		opts.Address = address
		node = build(opts, c.front.health)
		node.node = true
		node.cluster = c
		for _, each := range append(sides(node), node) {
			each.rewrites = true
		}
		go node.warm()
		if c.closed {
			node.Close()
		}
		c.nodes[address] = node
	}
	return node
}

// refresh fetches the map of slots from the first node that answers. It asks the node at first before others, and not the
// one at except; both may be empty. It does nothing if the map is fresh. While one call fetches the map, others wait only if
// there is no old one.
func (c *Cluster) refresh(first, except string) error {
	addresses := c.candidates(first, except)
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
		return c.failed
	}
	var err error
	for _, address := range addresses {
		var ranges []slotRange
		ranges, err = c.fetch(address)
		if err == nil && len(ranges) == 0 {
			err = errUncovered // of this node
		}
		if err == nil {
			c.install(ranges)
			break
		}
		if time.Since(begin) > c.opts.ReadTimeout+c.opts.DialTimeout {
			break
		}
	}
	c.refreshed = time.Now()
	c.failed = err
	return err
}

// refreshLater is refresh in the background. In the end it sends a value to done.
func (c *Cluster) refreshLater(except string, done chan<- struct{}) {
	defer recovered("looking for the nodes of a cluster")
	defer func() { done <- struct{}{} }()
	_ = c.refresh("", except) // the next command tries again
}

// sendAfter sends a value to done after d.
func sendAfter(d time.Duration, done chan<- struct{}) {
	defer recovered("looking for the nodes of a cluster")
	time.Sleep(d)
	done <- struct{}{}
}

// candidates returns the addresses of the nodes to ask for the map, in order.
func (c *Cluster) candidates(first, except string) []string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var addresses []string
	if first != "" {
		addresses = append(addresses, first)
	}
	for address := range c.nodes {
		if address != first && address != except {
			addresses = append(addresses, address)
		}
	}
	for _, seed := range c.seeds {
		_, there := c.nodes[seed]
		if !there && seed != first && seed != except {
			addresses = append(addresses, seed)
		}
	}
	return addresses
}

// slotRange is the slots from first to last, and the address of their master.
type slotRange struct {
	first, last int64
	address     string
}

// fetch asks the node at address for the map, over a separate connection.
func (c *Cluster) fetch(address string) ([]slotRange, error) {
	opts := c.opts
	conn, err := dialConn(&opts, address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if c.usesShards.Load() {
		return shards(&opts, conn, address)
	}
	reply, err := conn.Do("CLUSTER", "SLOTS")
	if err != nil && isForbidden(err) {
		ranges, shardsErr := shards(&opts, conn, address)
		if shardsErr == nil {
			log.Printf("level=warn msg=\"Redis forbids CLUSTER SLOTS; the map of slots comes from CLUSTER SHARDS\" redis=%q", address)
			c.usesShards.Store(true)
			return ranges, nil
		}
	}
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

// shards is fetch for a user who may not ask for CLUSTER SLOTS. Redis has CLUSTER SHARDS since 7.0.
func shards(opts *Options, conn redis.Conn, address string) ([]slotRange, error) {
	reply, err := conn.Do("CLUSTER", "SHARDS")
	if err != nil {
		return nil, fmt.Errorf("CLUSTER SHARDS of %s: %w", address, err)
	}
	var ranges []slotRange
	for _, element := range elements(reply) {
		shard := pairs(element)
		master := ""
		for _, node := range elements(shard["nodes"]) {
			n := pairs(node)
			if text(n["role"]) == "master" && (master == "" || text(n["health"]) == "online") {
				master = addressOf(n, opts.TLS.Enabled, hostOf(address))
			}
		}
		slots := elements(shard["slots"])
		for i := 0; i+1 < len(slots); i += 2 {
			r := slotRange{first: integer(slots[i]), last: integer(slots[i+1]), address: master}
			if master == "" || r.first < 0 || r.first > r.last || r.last >= slotCount {
				return nil, unexpected("CLUSTER SHARDS", reply)
			}
			ranges = append(ranges, r)
		}
	}
	return ranges, nil
}

// addressOf returns the address of a node in CLUSTER SHARDS; empty if it has none. host is that of the node that was asked.
func addressOf(node map[string]interface{}, encrypted bool, host string) string {
	port := integer(node["port"])
	if encrypted && integer(node["tls-port"]) > 0 {
		port = integer(node["tls-port"])
	}
	if port <= 0 {
		return ""
	}
	name := text(node["endpoint"])
	if name != "" && name != "?" {
		host = name
	}
	return net.JoinHostPort(host, strconv.FormatInt(port, 10))
}

// rangeIn reads the first slot, the last slot, and the master. host is that of the node that was asked, which is used if the
// reply does not name the master's.
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

// ownKey returns key with a suffix that puts it in a slot of node. It returns key unchanged if node has no slots, or if a part
// of key in braces determines the slot.
func ownKey(node *Client, key string) string {
	node.cluster.mu.RLock()
	masters := append(node.cluster.slots[:0:0], node.cluster.slots...) // a copy, of a type that Yaegi takes for the same
	node.cluster.mu.RUnlock()
	has := false
	for _, master := range masters {
		if master == node {
			has = true
			break
		}
	}
	if !has || Slot(key) == Slot(key+":0") {
		return key
	}
	for i := 0; i < 8*slotCount; i++ {
		own := key + ":" + strconv.Itoa(i)
		if masters[Slot(own)] == node {
			return own
		}
	}
	return key
}

// hostOf returns the host of an address, an IPv6 one without its brackets.
func hostOf(address string) string {
	return strings.Trim(address[:strings.LastIndexByte(address, ':')], "[]")
}

// install replaces the map by ranges. It closes the clients of nodes that are not masters any more.
func (c *Cluster) install(ranges []slotRange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	slots := make([]*Client, slotCount)
	nodes := map[string]*Client{}
	var count int64
	for _, r := range ranges {
		count += r.last - r.first + 1
		node := c.addNode(r.address)
		nodes[r.address] = node
		part := slots[r.first : r.last+1]
		part[0] = node
		for n := 1; n < len(part); n *= 2 { // copy doubles the part that is filled: a loop over slots would be interpreted
			copy(part[n:], part[:n])
		}
	}
	for address, node := range c.nodes {
		if nodes[address] == nil {
			go closeNode(node)
		}
	}
	c.slots = slots
	c.complete = count == slotCount
	c.nodes = nodes
}

// closeNode closes the client of a lost node. It may have to wait for commands that run.
func closeNode(node *Client) {
	defer recovered("closing the connections to a node")
	node.Close()
}

// crc16 is the table of Redis Cluster's CRC-16, whose polynomial is x^16+x^12+x^5+1, for hash/crc32: that is native code, while
// a loop over bytes would be interpreted. hash/crc32 can compute it because the polynomial leaves the upper half of the
// register empty. Redis takes the bits of each byte from the highest to the lowest, hash/crc32 the other way round: so the
// bits of every byte are reversed before, and those of the sum afterwards.
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
